"""The optimum's curve: against the replay's belady at every size, and against trying everything."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.curve.accesses import Accesses, accesses
from moesim.curve.optimum import optimum_distances
from moesim.decide import Decider, run_without_clock
from moesim.events import UseList, steps
from moesim.policies.composition import parse
from tests.curve.test_lru import TRACES, event_lists
from tests.oracles.exhaustive import fewest_misses
from tests.oracles.exploded import libcachesim_hits


def misses_of_replay(trace, slots, largest, *, per_layer=False):
    future = UseList(steps(trace), trace.layers, trace.n_experts)
    capacity = Capacity(slots, per_layer=per_layer)
    decider = Decider(
        parse("belady"), trace.layers, trace.n_experts, capacity, largest_event=largest, future=future
    )
    return sum(decision.misses.total() for decision in run_without_clock(decider, steps(trace)))


def all_distances(trace, pools):
    blocks = list(accesses(trace))
    return np.concatenate(list(optimum_distances(blocks, trace.layers, trace.n_experts, pools)))


@pytest.mark.parametrize("name", TRACES)
def test_misses_are_those_of_the_replay_at_every_size_where_all_events_fit(name):
    trace = TRACES[name]
    largest = max(map(len, event_lists(trace)))
    found = all_distances(trace, 1)
    for slots in range(largest, trace.layers * trace.n_experts + 1):
        missed = ((found == 0) | (found > slots)).sum()
        assert missed == misses_of_replay(trace, slots, largest)


@pytest.mark.parametrize("name", TRACES)
def test_a_pool_for_each_layer_is_that_of_the_replay(name):
    trace = TRACES[name]
    largest = max(map(len, event_lists(trace)))
    found = all_distances(trace, trace.layers)
    for slots in range(largest, trace.n_experts + 1):
        missed = ((found == 0) | (found > slots)).sum()
        assert missed == misses_of_replay(trace, slots, largest, per_layer=True)


@pytest.mark.parametrize("name", TRACES)
def test_exploded_accesses_miss_as_often_as_libcachesims_belady(name):
    trace = TRACES[name]
    blocks = [block.alone() for block in accesses(trace)]
    flat = [expert for event in event_lists(trace) for expert in event]
    found = np.concatenate(list(optimum_distances(blocks, trace.layers, trace.n_experts, 1)))
    for slots in range(1, trace.layers * trace.n_experts + 1):
        assert ((found > 0) & (found <= slots)).sum() == sum(libcachesim_hits(flat, slots, "belady"))


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    pieces=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_nobody_misses_less(sizes, pieces, seed):
    random = np.random.default_rng(seed)
    events = [random.choice(6, size, replace=False).tolist() for size in sizes]
    cuts = np.linspace(0, len(events), pieces + 1).astype(int).tolist()
    blocks = []
    for begin, end in pairwise(cuts):
        listed = events[begin:end]
        blocks.append(Accesses(
            np.array([expert for event in listed for expert in event], np.int32),
            np.cumsum([0, *map(len, listed)]),
        ))
    found = np.concatenate(list(optimum_distances(blocks, 1, 6, 1)))
    for slots in range(max(max(sizes), 1), 7):
        assert ((found == 0) | (found > slots)).sum() == fewest_misses(events, slots)
