"""`python -m benchmarks.scale_out [--json]`: what a second core gives a sweep, here and on a Dask cluster.

Efficiency is the time of one worker over twice the time of two; 1 is the best there is. In each round all take turns on
the same sweep, each in a new process and into a new folder, and the median of the rounds counts: a machine that others
keep busy slows all. The cluster's two workers are started before the clock, as an existing cluster's are.

Two cores share caches, memory and power, so work beside other work is slower than alone whoever hands it out. How much
is measured too: two sweeps of one worker each, side by side, which have nothing to share out.
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
    cache: [5%, 7.5%, 12.5%, 17.5%, 25%, 37.5%, 50%, 75%]
    context_tokens: 1024
  bandwidth:
    policy: [lru, least-stale, prefetch-and-refetch]
    cache: [12.5%, 25%]
    context_tokens: 1024
    hardware.link_bytes_per_s: [12e9, 25.7e9, 54.9e9]
    interval: false
"""


def seconds(path: Path, workers: int, cluster: str | None = None) -> float:
    """How long a sweep into a new folder takes."""
    sweep = Sweep.load(path)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_sweep(sweep, Path(folder) / "out", workers, lambda done, total: None, cluster)
        return time.perf_counter() - start


def afresh(path: Path, workers: int, cluster: str | None = None, *, at_once: int = 1) -> float:
    """The same in a new process, where nothing is kept from a sweep before; the longest of several at once."""
    with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
        return max(future.result() for future in [pool.submit(seconds, path, workers, cluster) for _ in range(at_once)])


def figures(rounds: int, measured_tokens: int) -> dict[str, Any]:
    """Medians over the rounds, and the load of the machine before and after."""
    took: dict[str, list[float]] = {"one_s": [], "two_s": [], "cluster_s": [], "side_by_side_s": []}
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder, LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=folder
    ) as cluster:
        path = Path(folder) / "scale-out.yaml"
        path.write_text(f"{SWEEP}\nmeasured_tokens: {measured_tokens}\n")
        afresh(path, 1)  # compiles what is compiled, which is kept beside the source, and fetches the trace
        for _ in range(rounds):
            took["one_s"].append(afresh(path, 1))
            took["two_s"].append(afresh(path, 2))
            took["cluster_s"].append(afresh(path, 1, cluster.scheduler_address))
            took["side_by_side_s"].append(afresh(path, 1, at_once=2))
        runs = len(Sweep.load(path).runs)
    ones = took["one_s"]
    return {
        "runs": runs,
        "rounds": rounds,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        **{name: round(statistics.median(times), 2) for name, times in took.items()},
        "efficiency": _efficiency(ones, took["two_s"]),
        "cluster_efficiency": _efficiency(ones, took["cluster_s"]),
        "side_by_side_efficiency": _efficiency(ones, [each / 2 for each in took["side_by_side_s"]]),
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
        f"| two sweeps side by side, one worker each | {found['side_by_side_s']} | "
        f"{found['side_by_side_efficiency']} |",
        "",
        f"{found['runs']} runs, {found['rounds']} rounds, load {found['load'][0]} to {found['load'][1]}.",
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
