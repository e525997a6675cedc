"""`python -m benchmarks.policies_cost [POLICY...] [--json]`: what an access costs in SimPy, every policy beside LRU.

Deciding and timing together, processor time, the best of three; LRU takes its turn beside each policy, so that a slow
or busy machine slows both. The limit that the project sets itself is three times LRU's.
"""

import argparse
import json
import time
from pathlib import Path

from moesim.errors import InputError
from moesim.policies.composition import known_policies, parse
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.window import optimum_hits, recorded_decisions

TRACES = Path(__file__).parents[1] / "traces"
MEASURED_TOKENS = 96
ENGINES = {"promoe": "promoe", "expert-replication": "batch-servers"}
"""Where a system means an engine of its own; LRU beside it keeps `yalis`, as in the main job."""


def trace_for(policy: str) -> Path:
    """With all scores where the policy routes by them, else with recorded predictions."""
    name = "reference-16x64-scores" if parse(policy).route.looks_at_cache else "reference-16x64"
    return TRACES / f"{name}.safetensors"


def ns_per_access(policy: str, trace: Path, cache_fraction: float) -> float:
    """Of all steps, the prefill's too. Raises InputError where the trace lacks what the policy reads."""
    config = RunConfig(
        trace=trace, model="olmoe-1b-7b", hardware="rtx-a6000", policy=policy, cache_fraction=cache_fraction,
        engine=ENGINES.get(policy, "yalis"), context_tokens=512, warmup_tokens=0, measured_tokens=MEASURED_TOKENS,
        interval=False, device="simulated",
    )
    recorded_decisions.cache_clear()
    optimum_hits.cache_clear()
    begin = time.process_time_ns()
    row = simulate(config).row()
    taken = time.process_time_ns() - begin
    counted = [row[name] for name in ("hits", "misses", "prefill_hits", "prefill_misses")]
    return taken / sum(each for each in counted if isinstance(each, int))


def main() -> None:
    """Print a line per policy, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", help="by default all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {}
    for policy in arguments.policies or known_policies():
        try:
            trace = trace_for(policy)
            cache_fraction = 0.5 if parse(policy).draft.longest else 0.25  # a draft takes the place of a quarter
            rounds = [tuple(ns_per_access(each, trace, cache_fraction) for each in (policy, "lru")) for _ in range(3)]
        except InputError as error:
            if not arguments.json:
                print(f"{policy:24} left out: {error}")
            continue
        own, lru = (min(each) for each in zip(*rounds, strict=True))
        found[policy] = {"ns_per_access": round(own), "times_lru": round(own / lru, 2)}
        if not arguments.json:
            print(f"{policy:24} {own:8.0f} ns per access, {own / lru:5.2f} times lru")
    if arguments.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
