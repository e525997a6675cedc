"""`python -m benchmarks [--json]`: how fast the simulator is, against a bare SimPy loop in the same run.

The loop does nothing but pass timeouts through SimPy's queue: the least that any SimPy model can cost. Each figure
is the median of several rounds, and in each round the loop and the replay take turns, so that a slow or busy
machine slows both.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import simpy

from moesim.run import RunConfig, simulate
from moesim.window import load_trace, recorded_decisions, trace_hash

TRACE = Path(__file__).parents[1] / "traces" / "reference-48x128.safetensors"
LOOP_EVENTS = 300_000
CASES = {
    "on-demand": 0.0,
    "lru": 0.25,
    "least-stale": 0.25,
    "belady": 0.25,
    "speculate-and-execute": 0.0,
    "prefetch-and-refetch": 0.25,
}


def loop_events_per_s() -> float:
    """Events per second of one process that waits for one timeout after another."""
    environment = simpy.Environment()

    def wait():
        for _ in range(LOOP_EVENTS):
            yield environment.timeout(1)

    environment.process(wait())
    start = time.perf_counter()
    environment.run()
    return LOOP_EVENTS / (time.perf_counter() - start)


def replay_accesses_per_s(policy: str, cache_fraction: float, measured_tokens: int) -> float:
    """Expert accesses per second of one run: decisions, SimPy device and metrics.

    The trace is open already, and the offline optimum that miss reasons need is known from the first round on, as it
    is in a sweep after its first run at a size; decisions are made anew.
    """
    config = RunConfig(
        trace=TRACE, model="qwen3-30b-a3b", hardware="rtx-a6000", policy=policy, cache_fraction=cache_fraction,
        context_tokens=1024, warmup_tokens=0, measured_tokens=measured_tokens, interval=False,
    )
    recorded_decisions.cache_clear()
    start = time.perf_counter()
    values = simulate(config).values
    seconds = time.perf_counter() - start
    accesses = sum(
        values[name] for name in ("hits", "misses", "prefill_hits", "prefill_misses")  # type: ignore[misc]
    )
    return accesses / seconds


def machine() -> str:
    """The processor's name and the Python version."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, one core, Python {platform.python_version()}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="how often each pair is measured (default 5)")
    parser.add_argument("--tokens", type=int, default=256, help="decode tokens of each replay (default 256)")
    arguments = parser.parse_args()
    load_trace(TRACE)
    trace_hash(TRACE)
    figures = {}
    for policy, fraction in CASES.items():
        loops, replays = [], []
        replay_accesses_per_s(policy, fraction, arguments.tokens)
        for _ in range(arguments.rounds):
            loops.append(loop_events_per_s())
            replays.append(replay_accesses_per_s(policy, fraction, arguments.tokens))
        figures[policy] = {
            "cache_fraction": fraction,
            "accesses_per_s": round(statistics.median(replays)),
            "loop_events_per_s": round(statistics.median(loops)),
            "loop_events_per_access": round(statistics.median(a / b for a, b in zip(loops, replays, strict=True)), 1),
        }
    if arguments.json:
        print(json.dumps({"machine": machine(), "figures": figures}, indent=2))
        return
    print(f"{machine()}\n")
    print("| policy | cache | expert accesses/s | bare SimPy loop, events/s | loop events per access |")
    print("|---|---|---|---|---|")
    for policy, row in figures.items():
        print(
            f"| {policy} | {row['cache_fraction']:.0%} | {row['accesses_per_s']:,} | {row['loop_events_per_s']:,} "
            f"| {row['loop_events_per_access']} |"
        )


if __name__ == "__main__":
    main()
