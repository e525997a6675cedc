"""`python -m benchmarks [--json]`: every figure of docs/performance.md beside its peer, measured in the same run.

Rewrites the tables and the plot of that page unless `--json` is given. Ratios first: the machine that they were
measured on may be busy, and slows both sides alike.
"""

import argparse
import json
import platform
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


def page(figures: dict[str, Any]) -> str:
    """The measured part of docs/performance.md."""
    parts = {
        "FastGPU against SimPy": devices.table(figures["devices"]),
        "Curves against libcachesim": curve.table(figures["curves"]),
        "A second core": scale_out.table(figures["scale_out"]),
        "Memory": memory.table(figures["memory"]),
    }
    lines = [BEGIN, "", f"{machine()}."]
    for title, table in parts.items():
        lines += ["", f"### {title}", "", table]
    return "\n".join([*lines, "", END])


def main() -> None:
    """Measure, and print or rewrite the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and leave the page alone")
    parser.add_argument("--rounds", type=int, default=5, help="how often each pair is measured (default 5)")
    parser.add_argument("--tokens", type=int, default=1024, help="decode tokens of each replay (default 1024)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the longest trace (default ten million)")
    arguments = parser.parse_args()
    figures = {
        "devices": devices.measure(arguments.rounds, arguments.tokens),
        "curves": {path.stem: curve.measure(path, arguments.rounds) for path in curve.TRACES},
        "scale_out": scale_out.figures(arguments.rounds, arguments.tokens // 8),
        "memory": memory.measure(arguments.rows),
    }
    grown = growth.measure()
    if arguments.json:
        print(json.dumps({"machine": machine(), **figures, "growth_s": grown}, indent=2))
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + page(figures) + after)
    growth.draw(grown, PAGE.with_name("growth.png"))
    print(page(figures))


if __name__ == "__main__":
    main()
