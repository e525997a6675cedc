"""Counts on real traces: against libcachesim where events are exploded, and fixed where they are shipped."""

from pathlib import Path

import pytest

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.events import UseList, steps
from moesim.policies.composition import parse
from moesim.trace import Trace
from moesim.trace_import import import_trace
from tests.oracles import exploded
from tests.traces_for_tests import one_expert_events

SHIPPED = Path(__file__).parents[1] / "traces"
SHARED = Path(__file__).parents[2] / "shared" / "traces"
RECORDINGS = {
    "olmoe": SHARED / "nvmoe" / "olmoe-all.tokens.jsonl",
    "deepseek-v2-lite": SHARED / "nvmoe" / "dsv2lite-all.tokens.jsonl",
    "gpt-oss-120b": SHARED / "nvmoe" / "gptoss-all.tokens.jsonl",
    "gpt-oss-20b": SHARED / "gpt-oss-20b" / "gptoss20b_decode_experts.npz",
    "reference-16x64": SHIPPED / "reference-16x64.safetensors",
    "reference-48x128": SHIPPED / "reference-48x128.safetensors",
}
EIGHT_SIZES = (0.02, 0.05, 0.1, 0.125, 0.25, 0.4, 0.5, 0.75)
TOKENS = 40
"""Enough to fill most of the caches; whole traces are a matter of minutes, not of a test suite."""


def recording(name):
    path = RECORDINGS[name]
    if not path.exists():
        pytest.skip(f"{path.name} is not part of the repository")
    trace = Trace.load(path) if path.suffix == ".safetensors" else import_trace(path)
    return trace.slice(0, TOKENS)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("policy", exploded.POLICIES)
def test_exploded_events_hit_where_libcachesim_hits(name, policy):
    trace = recording(name)
    flat = one_expert_events(trace)
    accesses = flat.experts.ravel().tolist()
    for fraction in EIGHT_SIZES:
        slots = int(fraction * trace.layers * trace.n_experts)
        future = UseList(steps(flat), 1, flat.n_experts) if policy == "belady" else None
        decider = Decider(parse(policy), 1, flat.n_experts, Capacity(slots), largest_event=1, future=future)
        hits = [decision.hits == 1 for decision in run_without_clock(decider, steps(flat))]
        assert hits == exploded.libcachesim_hits(accesses, slots, policy)


def misses(trace, policy, fraction):
    composed = parse(policy)
    layers, experts = trace.layers, trace.n_experts
    future = UseList(steps(trace), layers, experts) if composed.oracle else None
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    slots = int(fraction * layers * experts)
    decider = Decider(composed, layers, experts, Capacity(slots), largest_event=largest, future=future)
    return sum(decision.misses.total() for decision in run_without_clock(decider, steps(trace)))


# Misses of the first 96 tokens (one request of prefill and decode) at the eight sizes. If a policy is meant to change,
# run this file and paste what it prints.
FIXED = {
    "lru": (28405, 28405, 23681, 20554, 14392, 9646, 7255, 4550),
    "lfu": (28405, 28405, 21837, 19858, 13289, 9007, 7125, 4550),
    "fifo": (28405, 28405, 23757, 22071, 15784, 11344, 8597, 4550),
    "least-stale[key=insertion]": (28405, 28405, 23779, 22052, 15816, 11343, 8597, 4550),
    "least-stale[key=last-access]": (28405, 28405, 23681, 20554, 14392, 9646, 7255, 4550),
    "least-stale[key=layer]": (28405, 28405, 22808, 22048, 18420, 13886, 10774, 4550),
    "least-stale[key=left-first]": (28405, 28405, 21662, 20696, 16972, 12357, 9103, 4550),
    "least-stale[key=cyclic]": (26882, 24871, 22726, 21830, 17432, 12204, 8859, 4550),
    "belady": (23025, 18474, 14108, 12650, 8215, 5641, 4925, 4550),
    "belady[bypass]": (22778, 18349, 14021, 12572, 8174, 5638, 4923, 4550),
    "speculate-and-execute": (4341, 4341, 4202, 4095, 3983, 3929, 3910, 3850),
    "prefetch-and-refetch": (6358, 6358, 5901, 5709, 5014, 4523, 4301, 3949),
    "resident-execute": (6358, 6358, 5948, 5632, 5073, 4586, 4349, 3961),
}


@pytest.mark.parametrize("policy", FIXED)
def test_misses_of_a_shipped_request(policy):
    trace = Trace.load(RECORDINGS["reference-48x128"]).slice(0, 96)
    counted = tuple(misses(trace, policy, fraction) for fraction in EIGHT_SIZES)
    assert counted == FIXED[policy], f'"{policy}": {counted},'
