"""LRU's curve: against the replay's own cache at many sizes, a stack kept in a list, and libcachesim."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.curve import lru
from moesim.curve.accesses import accesses
from moesim.curve.lru import StackDistances
from moesim.decide import Decider, run_without_clock
from moesim.events import DECODE, steps
from moesim.policies.composition import parse
from tests.oracles.exploded import libcachesim_hits
from tests.traces_for_tests import batched_trace, random_trace

TRACES = {
    "decode": random_trace(60, 3, 8, 2, seed=1),
    "prefill": random_trace(60, 3, 8, 2, prompt=20, seed=2),
    "batched": batched_trace(120, 3, 12, 2, batch=3, seed=3),
    "batched without weights": batched_trace(120, 3, 12, 2, batch=4, seed=3, weights=False),
    "dropped": batched_trace(120, 2, 10, 3, batch=2, dropped=0.2, seed=4),
    "dropped one by one": batched_trace(90, 2, 10, 3, batch=1, dropped=0.3, seed=5),
}


def event_lists(trace, **options):
    """[event] -> experts in touch order."""
    found = []
    for block in accesses(trace, **options):
        listed = block.experts.tolist()
        found += [listed[start:stop] for start, stop in pairwise(block.starts.tolist())]
    return found


def distances(trace, *, alone=False, **options):
    stack = StackDistances(trace.layers * trace.n_experts)
    blocks = accesses(trace, **options)
    return np.concatenate([stack.of(block.alone() if alone else block) for block in blocks]).tolist()


def listed_distances(events):
    """Depth in a list of experts, the last touched first, when the event begins; 0 for the first access."""
    stack, found = [], []
    for event in events:
        found += [stack.index(expert) + 1 if expert in stack else 0 for expert in event]
        for expert in event:
            if expert in stack:
                stack.remove(expert)
            stack.insert(0, expert)
    return found


@pytest.mark.parametrize("name", TRACES)
def test_the_arrays_are_the_events_of_the_replay(name):
    trace = TRACES[name]
    expected = [
        [layer * trace.n_experts + expert for expert in step.touch_order(layer)]
        for step in steps(trace) for layer in range(trace.layers)
    ]
    assert event_lists(trace) == expected


def test_prefill_can_be_left_out():
    trace = TRACES["prefill"]
    expected = [
        [layer * trace.n_experts + expert for expert in step.touch_order(layer)]
        for step in steps(trace) if step.phase == DECODE for layer in range(trace.layers)
    ]
    assert event_lists(trace, decode_only=True) == expected


@pytest.mark.parametrize("name", TRACES)
def test_hits_are_those_of_the_replay_at_every_size_where_all_events_fit(name):
    trace = TRACES[name]
    largest = max(map(len, event_lists(trace)))
    found = distances(trace)
    for slots in range(largest, trace.layers * trace.n_experts + 1):
        decider = Decider(parse("lru"), trace.layers, trace.n_experts, Capacity(slots), largest_event=largest)
        hits = [decision.hits for decision in run_without_clock(decider, steps(trace))]
        place, counted = 0, []
        for event in event_lists(trace):
            counted.append(sum(0 < each <= slots for each in found[place : place + len(event)]))
            place += len(event)
        assert counted == hits


@settings(max_examples=150)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    seed=st.integers(0, 2**32 - 1),
    chunk=st.sampled_from([1, 7, 40, 1 << 14]),
    group=st.sampled_from([1, 3, 32]),
)
def test_distances_are_depths_in_a_list(sizes, seed, chunk, group):
    random = np.random.default_rng(seed)
    events = [random.choice(12, size, replace=False).tolist() for size in sizes]
    block = lru.Accesses(
        np.array([expert for event in events for expert in event], np.int32), np.cumsum([0, *sizes])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lru, "CHUNK_ACCESSES", chunk)
        patch.setattr(lru, "GROUP_ACCESSES", group)
        assert StackDistances(12).of(block).tolist() == listed_distances(events)


@pytest.mark.parametrize("name", TRACES)
def test_exploded_accesses_hit_where_libcachesim_hits(name):
    trace = TRACES[name]
    flat = [expert for event in event_lists(trace) for expert in event]
    found = distances(trace, alone=True)
    for slots in range(1, trace.layers * trace.n_experts + 1):
        assert [0 < each <= slots for each in found] == libcachesim_hits(flat, slots, "lru")


@pytest.mark.parametrize("name", TRACES)
def test_an_event_never_makes_its_own_accesses_miss(name):
    together, alone = np.array(distances(TRACES[name])), np.array(distances(TRACES[name], alone=True))
    assert (together <= alone).all()
    assert ((together == 0) == (alone == 0)).all()
