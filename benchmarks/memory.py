"""`python -m benchmarks.memory [--rows N] [--json]`: the peak memory of a replay, by the length of its trace.

Made-up traces of one sequence are replayed under LRU, each in a process of its own. The peak is read from /proc:
getrusage's begins at that of the process that started the process.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.made_up import STRETCH, write_model, write_trace

SHAPE = {"layers": 4, "experts": 16, "top_k": 2}
REPLAY = """
import sys, time
from pathlib import Path
from moesim.run import simulate
from moesim.run_config import RunConfig
start = time.process_time()
row = simulate(RunConfig(
    trace=Path(sys.argv[1]), model=sys.argv[2], hardware="rtx-a6000", policy="lru", cache_fraction=0.25,
    context_tokens=1024, warmup_tokens=0, interval=False,
)).row()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024, row["tokens_measured"], time.process_time() - start)
"""


def peak(rows: int) -> dict[str, float]:
    """Peak bytes and processor seconds of one replay, beside the bytes of its trace."""
    with TemporaryDirectory() as folder:
        trace, model = Path(folder) / "trace.safetensors", Path(folder) / "model.yaml"
        write_trace(trace, rows, **SHAPE)
        write_model(model, **SHAPE)
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, str(trace), str(model)], capture_output=True, text=True, check=True
        )
        peak_bytes, tokens, seconds = done.stdout.split()
        assert int(tokens) == rows, "every row is replayed"
        return {
            "rows": rows, "trace_bytes": trace.stat().st_size, "peak_bytes": int(peak_bytes), "seconds": float(seconds)
        }


def measure(rows: int) -> list[dict[str, float]]:
    """Three lengths up to `rows`, which is a multiple of a hundred stretches."""
    return [peak(each) for each in (rows // 100, rows // 10, rows)]


def table(found: list[dict[str, float]]) -> str:
    """The figures as Markdown."""
    lines = ["| rows | trace | peak memory | processor time |", "|---|---|---|---|"]
    lines += [
        f"| {each['rows']:,} | {each['trace_bytes'] / 1e6:,.0f} MB | {each['peak_bytes'] / 1e6:,.0f} MB "
        f"| {each['seconds']:,.0f} s |"
        for each in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=10_000_000, help="tokens of the trace (default ten million)")
    arguments = parser.parse_args()
    if arguments.rows % (100 * STRETCH):
        parser.error(f"--rows {arguments.rows}: a multiple of {100 * STRETCH:,}")
    found = measure(arguments.rows)
    print(json.dumps(found, indent=2) if arguments.json else table(found))


if __name__ == "__main__":
    main()
