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


# Misses of the first 96 tokens (one request of prefill and decode) at the eight sizes, as tests/oracles/event_atomic.py
# counts them (`belady[bypass]`: by the same rule with a table of next uses, as the oracle's own search takes hours).
FIXED = {
    "lru": (28467, 28467, 23583, 20524, 14988, 10221, 7828, 4703),
    "lfu": (28467, 28467, 22244, 20461, 13447, 9474, 7604, 4703),
    "fifo": (28467, 28467, 23599, 21889, 16322, 11737, 9030, 4722),
    "least-stale[key=insertion]": (28467, 28467, 23873, 21933, 16344, 11762, 9032, 4721),
    "least-stale[key=last-access]": (28467, 28467, 23583, 20524, 14988, 10221, 7828, 4703),
    "least-stale[key=layer]": (28467, 28467, 22657, 21968, 18232, 13969, 11090, 4722),
    "least-stale[key=left-first]": (28467, 28467, 21560, 20720, 16944, 12639, 9460, 4702),
    "least-stale[key=cyclic]": (26856, 24789, 22699, 21894, 17690, 12865, 9523, 4702),
    "belady": (22863, 18500, 14336, 12822, 8586, 5938, 5196, 4700),
    "belady[bypass]": (22617, 18369, 14244, 12746, 8545, 5937, 5196, 4700),
    "speculate-and-execute": (4403, 4403, 4305, 4237, 4126, 4039, 4001, 3912),
    "prefetch-and-refetch": (6394, 6394, 5970, 5740, 5203, 4686, 4456, 4022),
    "resident-execute": (6394, 6394, 6005, 5728, 5221, 4731, 4473, 4035),
}


@pytest.mark.parametrize("policy", FIXED)
def test_misses_of_a_shipped_request(policy):
    trace = Trace.load(RECORDINGS["reference-48x128"]).slice(0, 96)
    counted = tuple(misses(trace, policy, fraction) for fraction in EIGHT_SIZES)
    assert counted == FIXED[policy], f'"{policy}": {counted},'
