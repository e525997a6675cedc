"""FastGPU against SimPy, and against the least that a loop in plain Python can do: one dictionary and two clocks.

Whole runs: decisions, timing, the tally, miss reasons. The trace is open and the offline optimum known, as they are in
a sweep after its first run at a size; decisions are made anew in `decide_and_time` and kept in `time_only`. Seconds are
the process' own, since other programs share the machine; devices take turns within a round.
"""

import statistics
import time
from collections import OrderedDict
from pathlib import Path

from moesim.compiled import jit
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.trace import Trace
from moesim.window import recorded_decisions

TRACE = Path(__file__).parents[1] / "traces" / "reference-48x128.safetensors"
CASES = {
    "on-demand": 0.0,
    "lru": 0.25,
    "prefetch-and-refetch": 0.25,
    "least-stale": 0.25,
    "belady": 0.25,
    "speculate-and-execute": 0.0,
}


def accesses_per_s(policy: str, cache_fraction: float, tokens: int, device: str, *, anew: bool = True) -> float:
    """Expert accesses per second of one run."""
    config = RunConfig(
        trace=TRACE, model="qwen3-30b-a3b", hardware="rtx-a6000", policy=policy, cache_fraction=cache_fraction,
        context_tokens=1024, warmup_tokens=0, measured_tokens=tokens, interval=False, device=device,
    )
    if anew:
        recorded_decisions.cache_clear()
    start = time.process_time()
    values = simulate(config).values
    seconds = time.process_time() - start
    return sum(values[name] for name in ("hits", "misses", "prefill_hits", "prefill_misses")) / seconds


def sketch_accesses_per_s(tokens: int, slots: int) -> float:
    """A bare LRU with two clocks, in plain Python: no events, no pins, no tally."""
    trace = Trace.load(TRACE)
    chosen = [
        [[layer * 128 + e for e in each] for layer, each in enumerate(token)]
        for token in trace.experts[:tokens].tolist()
    ]
    resident: OrderedDict[int, None] = OrderedDict()
    compute_ns = link_ns = accesses = 0
    start = time.process_time()
    for token in chosen:
        for layer in token:
            compute_ns += 50_000
            arrived_ns = compute_ns
            for expert in layer:
                accesses += 1
                if expert in resident:
                    resident.move_to_end(expert)
                    continue
                if len(resident) >= slots:
                    resident.popitem(last=False)
                resident[expert] = None
                link_ns = max(link_ns, compute_ns) + 380_000
                arrived_ns = link_ns
            compute_ns = max(compute_ns, arrived_ns) + 90_000
    return accesses / (time.process_time() - start)


def measure(rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, by policy."""
    found = {}
    for policy, fraction in CASES.items():
        for device in ("fast", "simulated"):
            accesses_per_s(policy, fraction, min(64, tokens), device)  # compiles, and knows the optimum of small runs
        accesses_per_s(policy, fraction, tokens, "fast")
        rows = []
        for _ in range(rounds):
            fast = accesses_per_s(policy, fraction, tokens, "fast")
            fast_again = accesses_per_s(policy, fraction, tokens, "fast", anew=False)
            simulated = accesses_per_s(policy, fraction, tokens, "simulated")
            simulated_again = accesses_per_s(policy, fraction, tokens, "simulated", anew=False)
            sketch = sketch_accesses_per_s(tokens, 1536)
            rows.append((fast / simulated, fast_again / simulated_again, fast / sketch, fast, fast_again, simulated,
                         simulated_again, sketch))
        names = ("times_simpy", "times_simpy_time_only", "times_sketch", "fast_per_s", "fast_time_only_per_s",
                 "simpy_per_s", "simpy_time_only_per_s", "sketch_per_s")
        found[policy] = {name: statistics.median(row[place] for row in rows) for place, name in enumerate(names)}
        found[policy]["cache_fraction"] = fraction
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown, ratios first."""
    lines = [
        "| policy | cache | FastGPU / SimPy | time alone | / bare sketch | FastGPU, accesses/s | SimPy, accesses/s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {policy} | {row['cache_fraction']:.0%} | {row['times_simpy']:.1f} × | {row['times_simpy_time_only']:.1f} × "
        f"| {row['times_sketch']:.2f} × | {row['fast_per_s']:,.0f} | {row['simpy_per_s']:,.0f} |"
        for policy, row in found.items()
    ]
    how = "with" if jit.AVAILABLE else "without"
    return "\n".join([f"Measured {how} `moesim[fast]`.", "", *lines])
