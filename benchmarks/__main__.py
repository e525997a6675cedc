"""`python -m benchmarks [PART...] [--json]`: each figure of docs/performance.md beside its peer, in the same run.

Rewrites the tables and the plot of that page, or those of the parts that are named, unless `--json` is given. Ratios
first: the machine that they were measured on may be busy, and slows both sides alike.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import curve, devices, growth, memory, scale_out

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- measured: python -m benchmarks -->", "<!-- end -->"


def machine() -> str:
    """The processor's name and the Python version."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, one core, Python {platform.python_version()}"


PARTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "devices": ("FastGPU against SimPy", devices.table),
    "curves": ("Curves against libcachesim", curve.table),
    "scale_out": ("A second core", scale_out.table),
    "memory": ("Memory", memory.table),
}
"""Each part's title on the page, and how its figures are written."""


def rewritten(text: str, figures: dict[str, Any]) -> str:
    """The page with the parts that were measured; the others stay as they are."""
    before, _, rest = text.partition(BEGIN)
    measured, _, after = rest.partition(END)
    _, *old = measured.split("\n### ")
    bodies = {title: body.strip("\n") for title, _, body in (part.partition("\n") for part in old)}
    bodies |= {PARTS[name][0]: PARTS[name][1](found) for name, found in figures.items()}
    lines = [BEGIN, "", f"{machine()}."]
    for title, _ in PARTS.values():
        if title in bodies:
            lines += ["", f"### {title}", "", bodies[title]]
    return before + "\n".join([*lines, "", END]) + after


def main() -> None:
    """Measure, and print or rewrite the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, growth (default all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and leave the page alone")
    parser.add_argument("--rounds", type=int, default=5, help="how often each pair is measured (default 5)")
    parser.add_argument("--tokens", type=int, default=1024, help="decode tokens of each replay (default 1024)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the longest trace (default ten million)")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {*PARTS, "growth"}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(PARTS)} or growth")
    measures: dict[str, Callable[[], Any]] = {
        "devices": lambda: devices.measure(arguments.rounds, arguments.tokens),
        "curves": lambda: {path.stem: curve.measure(path, arguments.rounds) for path in curve.TRACES},
        "scale_out": lambda: scale_out.figures(arguments.rounds, arguments.tokens // 8),
        "memory": lambda: memory.measure(arguments.rows),
        "growth": growth.measure,
    }
    figures = {name: measure() for name, measure in measures.items() if name in (arguments.parts or measures)}
    if arguments.json:
        print(json.dumps({"machine": machine(), **figures}, indent=2))
        return
    grown = figures.pop("growth", None)
    if grown is not None:
        growth.draw(grown, PAGE.with_name("growth.png"))
    text = rewritten(PAGE.read_text(), figures)
    PAGE.write_text(text)
    print(text[text.index(BEGIN) : text.index(END)])


if __name__ == "__main__":
    main()
