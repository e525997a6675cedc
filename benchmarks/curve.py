"""`python -m benchmarks.curve [--json]`: stack distances against libcachesim, per curve of 50 sizes, in the same run.

libcachesim replays the accesses once for each size, in C, from a binary file that it maps; the distances give all sizes
at once. Both see exploded accesses, one expert an event, and must count the same misses at all 50 sizes. Rounds take
turns, and each figure is the median of the rounds' ratios, so that a busy machine slows both.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import libcachesim
import numpy as np

from moesim.curve.accesses import accesses
from moesim.curve.lru import StackDistances
from moesim.curve.optimum import optimum_distances
from moesim.trace import Trace

TRACES = [Path(__file__).parents[1] / "traces" / f"reference-{shape}.safetensors" for shape in ("16x64", "48x128")]
SIZES = 50
_RECORD = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])


def distances(trace: Trace, *, alone: bool) -> np.ndarray:
    """All stack distances, from the mapped trace."""
    stack = StackDistances(trace.layers * trace.n_experts)
    return np.concatenate([stack.of(block.alone() if alone else block) for block in accesses(trace)])


def misses_of_libcachesim(path: Path, sizes: list[int]) -> list[float]:
    """The miss ratio at each size."""
    reader = libcachesim.TraceReader(
        trace=str(path), trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE
    )
    ratios = []
    for size in sizes:
        reader.reset()
        ratios.append(libcachesim.LRU(cache_size=size, hashpower=14).process_trace(reader)[0])
    return ratios


def seconds(work):
    """How long a call takes, and what it returns."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def measure(path: Path, rounds: int) -> dict[str, float]:
    """One trace: accesses per second of each curve, and how much sooner the whole LRU curve is there."""
    trace = Trace.load(path)
    blocks = list(accesses(trace))
    experts = np.concatenate([block.experts for block in blocks])
    sizes = np.linspace(trace.top_k, trace.layers * trace.n_experts, SIZES).astype(int).tolist()
    records = np.zeros(len(experts), _RECORD)
    records["time"], records["object"], records["size"] = np.arange(len(experts)), experts + 1, 1
    records["next"] = -2
    ratios, together, alone, theirs = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exploded.oracleGeneral"
        records.tofile(file)
        distances(trace, alone=True)
        for _ in range(rounds):
            taken, _ = seconds(lambda: distances(trace, alone=False))
            together.append(len(experts) / taken)
            taken, found = seconds(lambda: distances(trace, alone=True))
            alone.append(len(experts) / taken)
            their_taken, missed = seconds(lambda: misses_of_libcachesim(file, sizes))
            theirs.append(len(experts) * SIZES / their_taken)
            ratios.append(their_taken / taken)
            for size, ratio in zip(sizes, missed, strict=True):
                counted = ((found == 0) | (found > size)).sum()
                assert counted == round(ratio * len(experts)), f"{size} slots: {counted} misses, libcachesim {ratio}"
    taken, _ = seconds(lambda: list(optimum_distances(blocks, trace.layers, trace.n_experts, 1)))
    own_taken, _ = seconds(lambda: list(optimum_distances(blocks, trace.layers, trace.n_experts, trace.layers)))
    return {
        "accesses": len(experts),
        "lru_accesses_per_s": round(statistics.median(together)),
        "exploded_accesses_per_s": round(statistics.median(alone)),
        "libcachesim_accesses_per_s_and_size": round(statistics.median(theirs)),
        "times_faster_per_curve_of_50": round(statistics.median(ratios), 1),
        "optimum_accesses_per_s": round(len(experts) / taken),
        "optimum_by_layer_accesses_per_s": round(len(experts) / own_taken),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| trace | accesses | LRU, accesses/s | exploded | libcachesim, accesses/s and size | per curve of 50 sizes "
        "| optimum, accesses/s | by layer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        values = list(row.values())
        lines.append(
            f"| {name} | {values[0]:,} | {values[1]:,} | {values[2]:,} | {values[3]:,} | {values[4]} × faster "
            f"| {values[5]:,} | {values[6]:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curve", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=7, help="how often each pair is measured (default 7)")
    arguments = parser.parse_args()
    from benchmarks.__main__ import machine

    figures = {path.stem: measure(path, arguments.rounds) for path in TRACES}
    if arguments.json:
        print(json.dumps({"machine": machine(), "figures": figures}, indent=2))
        return
    print(f"{machine()}\n\n{table(figures)}")


if __name__ == "__main__":
    main()
