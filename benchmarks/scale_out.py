"""`python -m benchmarks.scale_out [--json]`: what a second core gives a sweep, here and on a Dask cluster.

Efficiency is the time of one worker over twice the time of two; 1 is the best there is. In each round the three take
turns on the same sweep, each into a new folder, and the median of the rounds counts: a machine that others keep busy
slows all three. The processor time beside it says what the split itself costs, whoever else is at work: the work of
one worker over that of two. The cluster's two workers are started before the clock, as an existing cluster's are.
"""

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import LocalCluster

from moesim.config import Sweep
from moesim.sweep import run_sweep

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEP = f"""
name: scale-out
trace: {CONFIGS.parent}/traces/reference-48x128.safetensors
model: qwen3-30b-a3b
hardware: rtx-a6000
warmup_tokens: 64
grids:
  policies:
    policy: [on-demand, lru, lfu, fifo, least-stale, speculate-and-execute, prefetch-and-refetch, belady]
    cache: [5%, 12.5%, 25%, 50%]
    context_tokens: 1024
  bandwidth:
    policy: [lru, least-stale, prefetch-and-refetch]
    cache: [12.5%, 25%]
    context_tokens: 1024
    hardware.link_bytes_per_s: [12e9, 25.7e9, 54.9e9]
    interval: false
"""


def seconds(sweep: Sweep, workers: int, cluster: str | None = None) -> float:
    """How long a sweep into a new folder takes."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_sweep(sweep, Path(folder) / "out", workers, lambda done, total: None, cluster)
        return time.perf_counter() - start


def processor_s() -> float:
    """Processor time of this process and of those of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def figures(rounds: int, measured_tokens: int) -> dict[str, Any]:
    """Medians over the rounds, and the load of the machine before and after."""
    took: dict[str, list[float]] = {"one_s": [], "two_s": [], "cluster_s": []}
    worked: dict[str, list[float]] = {"one_s": [], "two_s": []}
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder, LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=folder
    ) as cluster:
        path = Path(folder) / "scale-out.yaml"
        path.write_text(f"{SWEEP}\nmeasured_tokens: {measured_tokens}\n")
        sweep = Sweep.load(path)
        seconds(sweep, 1)  # opens the trace, and compiles what is compiled
        for _ in range(rounds):
            for name, workers in (("one_s", 1), ("two_s", 2)):
                before = processor_s()
                took[name].append(seconds(sweep, workers))
                worked[name].append(processor_s() - before)
            took["cluster_s"].append(seconds(sweep, 1, cluster.scheduler_address))
    ones = took["one_s"]
    return {
        "runs": len(sweep.runs),
        "rounds": rounds,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        **{name: round(statistics.median(times), 2) for name, times in took.items()},
        "efficiency": _efficiency(ones, took["two_s"]),
        "cluster_efficiency": _efficiency(ones, took["cluster_s"]),
        "processor_time_kept": round(statistics.median(a / b for a, b in zip(*worked.values(), strict=True)), 2),
    }


def _efficiency(ones: list[float], twos: list[float]) -> float:
    return round(statistics.median(one / (2 * two) for one, two in zip(ones, twos, strict=True)), 2)


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    return "\n".join([
        "| | seconds | efficiency on two cores |",
        "|---|---|---|",
        f"| one worker | {found['one_s']} | |",
        f"| two workers | {found['two_s']} | {found['efficiency']} |",
        f"| Dask, two workers | {found['cluster_s']} | {found['cluster_efficiency']} |",
        "",
        f"{found['runs']} runs, {found['rounds']} rounds, load {found['load'][0]} to {found['load'][1]}; one worker's "
        f"processor time is {found['processor_time_kept']} of what two take together.",
    ])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--tokens", type=int, default=128, help="decode tokens of each run (default 128)")
    arguments = parser.parse_args()
    found = figures(arguments.rounds, arguments.tokens)
    print(json.dumps(found, indent=2) if arguments.json else table(found))


if __name__ == "__main__":
    main()
