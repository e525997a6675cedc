"""What every policy must keep, whatever it decides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.decide import Capacity, Decider, run_without_clock
from moesim.events import UseList, steps
from moesim.policies.composition import known_policies, parse
from tests.traces_for_tests import random_trace

NEW_EVICTIONS = ["lhu", "fld", "score", "slru", "cyclic-lru", "lcp", "hobbit", "random"]
EVICTIONS = [
    "lru", "lfu", "fifo", "belady", "belady[bypass]",
    *(f"least-stale[key={key}]" for key in ("insertion", "last-access", "layer", "left-first", "cyclic")),
    *NEW_EVICTIONS,
]
POLICIES = sorted(
    set(known_policies())
    | {f"lru[evict={evict}]" for evict in EVICTIONS}
    | {f"{policy}[evict={evict}]" for policy in ("speculate-and-execute", "prefetch-and-refetch", "resident-execute")
       for evict in EVICTIONS if evict != "belady[bypass]"}
)


def decider_for(policy, trace, capacity, **options):
    composed = parse(policy)
    future = UseList(steps(trace), trace.layers, trace.n_experts) if composed.oracle else None
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    return Decider(
        composed, trace.layers, trace.n_experts, capacity, largest_event=largest, future=future, **options
    )


def capacities(trace):
    layers, experts = trace.layers, trace.n_experts
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    yield Capacity(2 * largest, workspace=True)
    yield Capacity(trace.top_k)
    yield Capacity(experts)  # a cache of one layer
    yield Capacity(max(trace.top_k, experts // 2), per_layer=True)
    yield Capacity(layers * experts)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(3, 8, 2), (2, 4, 4), (1, 6, 1), (4, 5, 3)]),
    prompt=st.sampled_from([0, 6]),
)
def test_slots_pins_and_accounts(policy, seed, shape, prompt):
    trace = random_trace(14, *shape, prompt=prompt, seed=seed)
    for capacity in capacities(trace):
        if parse(policy).spec.cache == "all":
            capacity = Capacity(trace.layers * trace.n_experts, everything=True)
        decider = decider_for(policy, trace, capacity)
        holder = {}  # slot -> expert, as the device would see it
        if capacity.everything:
            holder = dict(enumerate(range(capacity.slots)))
        for step in steps(trace):
            decider.begin(step)
            for layer in range(trace.layers):
                decision = decider.decide(step, layer)
                ran = set()
                for number, wave in enumerate(decision.waves):
                    for copy in wave.demand:
                        assert 0 <= copy.slot < decider.slots
                        assert copy.displaced not in wave.execute, "evicts what this wave needs"
                        assert copy.displaced in (None, holder.get(copy.slot))
                        holder[copy.slot] = copy.expert
                    for expert, slot in zip(wave.execute, wave.slots, strict=True):
                        assert holder[slot] == expert, "the kernel reads what the slot holds"
                        assert expert // trace.n_experts == layer
                    assert not ran & set(wave.execute), "every expert runs once"
                    ran |= set(wave.execute)
                    if number + 1 < len(decision.waves):
                        assert len(wave.execute) <= decider.slots
                for copy in decision.prefetch:
                    last = decision.waves[-1].execute if decision.waves else []
                    assert copy.displaced not in last, "a prefetch evicts what the event still needs"
                    assert copy.displaced in (None, holder.get(copy.slot))
                    holder[copy.slot] = copy.expert
                accesses = {layer * trace.n_experts + e for e in decider.policy.route.accesses(step, layer)}
                assert ran | set(decision.stood_in) == accesses
                assert decision.hits + decision.misses.total() == len(accesses)
                fetched = sum(len(wave.demand) for wave in decision.waves)
                assert fetched + len(decision.stood_in) == decision.misses.total()
                decider.finish(layer)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_inputs_give_the_same_decisions(policy):
    trace = random_trace(30, seed=5)
    capacity = Capacity(24, everything=True) if policy == "all-resident" else Capacity(6)
    first, second = (
        [repr(each) for each in run_without_clock(decider_for(policy, trace, capacity), steps(trace))] for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("policy", [p for p in POLICIES if not parse(p).oracle])
def test_no_decision_depends_on_the_future(policy):
    trace = random_trace(30, seed=9)
    capacity = Capacity(24, everything=True) if policy == "all-resident" else Capacity(7)
    whole = [repr(each) for each in run_without_clock(decider_for(policy, trace, capacity), steps(trace))]
    start = trace.slice(0, 17)
    part = [repr(each) for each in run_without_clock(decider_for(policy, start, capacity), steps(start))]
    assert whole[: len(part)] == part


def keeps_what_it_fetches(policy):
    return parse(policy).spec.cache == "any" and parse(policy).on_miss.lossless


@pytest.mark.parametrize("policy", list(filter(keeps_what_it_fetches, POLICIES)))
def test_a_cache_of_everything_misses_only_what_it_has_never_seen(policy):
    trace = random_trace(30, seed=3)
    decider = decider_for(policy, trace, Capacity(trace.layers * trace.n_experts))
    reasons = set()
    for decision in run_without_clock(decider, steps(trace)):
        reasons |= set(decision.misses)
    assert reasons <= {"compulsory", "prefetch"}
