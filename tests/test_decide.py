"""Decisions against independent implementations: a scan of every slot, exhaustive search, and libcachesim."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.decide import Decider, OptimumHits, run_without_clock
from moesim.events import DECODE, UseList, steps
from moesim.policies.composition import parse
from tests.oracles import event_atomic, exhaustive, exploded
from tests.traces_for_tests import PREDICTOR, one_expert_events, random_trace

EXECUTIONS = {
    "demand": "lru[evict={}]",
    "prefetch-and-refetch": "prefetch-and-refetch[evict={}]",
    "speculate-and-execute": "speculate-and-execute[evict={}]",
    "resident-execute": "resident-execute[evict={}]",
}
RENAMED = {"mispredicted": "prefetch"}


def ours(eviction):
    """`least-stale[layer]` of the oracle is `least-stale[key=layer]` here."""
    return eviction.replace("[", "[key=")


def events_of(trace):
    """The oracle's events."""
    for number, step in enumerate(steps(trace)):
        for layer in range(trace.layers):
            predicted = step.predicted(PREDICTOR, layer)
            yield event_atomic.Event(
                number, layer, tuple(step.touch_order(layer)), tuple(predicted) if predicted else None,
                decode=step.phase == DECODE, first_use=tuple(step.accesses[layer]),
            )


def decisions(policy, trace, capacity, optimum=None):
    composed = parse(policy)
    layers, experts = trace.layers, trace.n_experts
    future = UseList(steps(trace), layers, experts, composed.route.accesses) if composed.oracle else None
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    decider = Decider(composed, layers, experts, capacity, largest_event=largest, future=future, optimum=optimum)
    return list(run_without_clock(decider, steps(trace)))


def optimum_of(policy, trace, capacity):
    """Per event, what belady hits on the same accesses; as run.optimum_hits computes it for a file."""
    hits = OptimumHits()
    chosen = parse(policy).route
    made = iter(decisions(parse(policy).bound_text, trace, capacity))
    for step in steps(trace):
        for layer in range(trace.layers):
            missed = {copy.expert % trace.n_experts for wave in next(made).waves for copy in wave.demand}
            hits.add_event(expert not in missed for expert in chosen.accesses(step, layer))
    return hits


def compare(trace, policy, eviction, execution, slots):
    capacity = Capacity(slots) if slots else Capacity(2 * max(len(e.experts) for e in events_of(trace)), workspace=True)
    optimum = optimum_of(policy, trace, capacity) if slots and eviction != "belady" else None
    got = decisions(policy, trace, capacity, optimum)
    expected = event_atomic.simulate(
        list(events_of(trace)), slots, eviction, execution, layers=trace.layers
    )
    layers, experts = trace.layers, trace.n_experts
    assert sum(each.hits for each in got) == expected.hits
    # victims in the order in which they went, as a set per event: slots may be handed out in another order
    ours_gone = [
        {copy.displaced for wave in each.waves for copy in wave.demand if copy.displaced is not None}
        | {copy.displaced for copy in each.prefetch if copy.displaced is not None}
        for each in got
    ]
    gone = [set() for _ in got]
    for victim in expected.victims:
        gone[victim.event].add(victim.layer * experts + victim.expert)
    assert ours_gone == gone
    demand = [[] for _ in got]
    for event, (layer, expert) in expected.copied_on_demand:
        demand[event].append(layer * experts + expert)
    assert [sorted(copy.expert for w in each.waves for copy in w.demand) for each in got] == list(map(sorted, demand))
    early = [[] for _ in got]
    for event, (layer, expert) in expected.prefetched:
        early[event].append(layer * experts + expert)
    assert [[copy.expert for copy in each.prefetch] for each in got] == early
    assert sum(each.prefetch_dropped for each in got) == len(expected.dropped)
    reasons = {}
    for each in got:
        for reason, count in each.misses.items():
            reasons[reason] = reasons.get(reason, 0) + count
    assert reasons == {RENAMED.get(reason, reason): count for reason, count in expected.reasons().items()}
    assert layers * len(list(steps(trace))) == len(got)


@pytest.mark.parametrize("eviction", event_atomic.EVICTIONS)
@pytest.mark.parametrize("execution", EXECUTIONS)
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(3, 8, 2), (2, 6, 3), (5, 4, 1)]),
    prompt=st.sampled_from([0, 4]), slots=st.integers(0, 30),
)
def test_hits_victims_copies_and_reasons_equal_a_scan_of_every_slot(eviction, execution, seed, shape, prompt, slots):
    trace = random_trace(16, *shape, prompt=prompt, seed=seed)
    largest = max(len(event.experts) for event in events_of(trace))
    if 0 < slots < largest:  # waves: read differently, see docs/design.md
        slots = largest
    compare(trace, EXECUTIONS[execution].format(ours(eviction)), eviction, execution, slots)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(2, 4, 2), (1, 6, 2), (3, 3, 1), (1, 5, 1)]),
    spare=st.integers(0, 3),
)
def test_belady_is_the_fewest_misses_that_any_choice_of_victims_gives(seed, shape, spare):
    trace = random_trace(7, *shape, seed=seed)
    slots = trace.top_k + spare
    needed = [[(event.layer, expert) for expert in event.experts] for event in events_of(trace)]
    for policy, search in (
        ("belady", exhaustive.fewest_misses), ("belady[bypass]", exhaustive.fewest_misses_with_bypass),
    ):
        missed = sum(each.misses.total() for each in decisions(policy, trace, Capacity(slots)))
        assert missed == search(needed, slots)


@pytest.mark.parametrize("policy", exploded.POLICIES)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 24))
def test_one_expert_events_equal_libcachesim_access_by_access(policy, seed, slots):
    trace = one_expert_events(random_trace(20, 3, 8, 2, seed=seed))
    got = [each.hits == 1 for each in decisions(policy, trace, Capacity(slots))]
    assert got == exploded.libcachesim_hits(trace.experts.ravel().tolist(), slots, policy)


@pytest.mark.parametrize("slots", [2, 5, 9, 16])
def test_least_stale_by_last_access_is_lru_without_prefetch(slots):
    trace = random_trace(60, 4, 8, 2, seed=1)
    stale, lru = (
        [(each.hits, each.waves) for each in decisions(policy, trace, Capacity(slots))]
        for policy in ("least-stale[key=last-access]", "lru")
    )
    assert stale == lru


def test_no_eviction_without_prefetch_beats_belady():
    for seed in range(20):
        trace = random_trace(30, 3, 8, 2, seed=seed)
        for slots in (2, 4, 8, 12, 16):
            best = sum(each.misses.total() for each in decisions("belady", trace, Capacity(slots)))
            for eviction in event_atomic.EVICTIONS:
                got = decisions(ours(eviction), trace, Capacity(slots))
                assert sum(each.misses.total() for each in got) >= best
