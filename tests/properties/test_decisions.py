"""What must hold of hits and misses, whatever the trace: no clock is involved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.trace import DECODE, Trace
from tests.properties.runs import (
    WITH_PREFETCH,
    WITHOUT_PREFETCH,
    decisions,
    foreseeing_nothing,
    largest_event,
    misses,
    renumbered,
    traces,
)
from tests.traces_for_tests import metadata, random_trace

few = settings(max_examples=25)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("policy", ["lru", "belady", "belady[bypass]"])
@few
@given(trace=traces())
def test_more_slots_never_add_misses_where_every_event_fits(policy, per_layer, trace):
    most = trace.n_experts * (1 if per_layer else trace.layers)
    counted = [
        misses(trace, policy, Capacity(slots, per_layer=per_layer))
        for slots in range(largest_event(trace), most + 1)
    ]
    assert counted == sorted(counted, reverse=True)


def decoded(steps, layers, experts):
    """A trace from [step][token][layer] -> experts, heaviest first."""
    rows = [token for step in steps for token in step]
    count = len(rows)
    numbers = np.repeat(np.arange(len(steps), dtype=np.uint32), [len(step) for step in steps])
    row = np.arange(count, dtype=np.uint32)
    chosen = np.array(rows, np.uint8)
    return Trace(
        experts=chosen, weights=None, step=numbers, request=row, position=np.zeros(count, np.uint32),
        phase=np.full(count, DECODE, np.uint8), metadata=metadata(layers, experts, chosen.shape[2]),
    )


def test_in_waves_more_slots_can_miss_more():
    """An event of four experts over three slots leaves another three behind than LRU's order would keep."""
    trace = decoded([[[[0, 1]], [[2, 3]]], [[[2, 3]]], [[[3, 1]]]], layers=1, experts=4)
    assert [misses(trace, "lru", Capacity(slots)) for slots in (2, 3, 4)] == [5, 6, 4]


@few
@given(trace=traces(), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("policy", [*WITHOUT_PREFETCH, *WITH_PREFETCH])
def test_what_experts_are_called_changes_nothing(policy, trace, seed):
    if policy in WITH_PREFETCH and not trace.predicted:
        return
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    before, after = decisions(trace, policy, capacity), decisions(renumbered(trace, seed), policy, capacity)
    for one, other in zip(before, after, strict=True):
        assert (one.hits, one.misses, one.prefetch_dropped) == (other.hits, other.misses, other.prefetch_dropped)
        assert [len(wave.demand) for wave in one.waves] == [len(wave.demand) for wave in other.waves]
        assert [copy.slot for copy in one.prefetch] == [copy.slot for copy in other.prefetch]


@few
@given(seed=st.integers(0, 2**32 - 1), part=st.sampled_from([0.3, 0.6, 1.0]))
def test_a_prefetch_of_nothing_is_no_prefetch(seed, part):
    trace = random_trace(24, seed=seed)
    capacity = Capacity(int(part * trace.layers * trace.n_experts))
    with_nothing = decisions(foreseeing_nothing(trace), "prefetch-and-refetch", capacity)
    without = decisions(trace, "lru", capacity)
    assert [each.waves for each in with_nothing] == [each.waves for each in without]
    assert not any(each.prefetch for each in with_nothing)


@few
@given(trace=traces())
@pytest.mark.parametrize("policy", WITHOUT_PREFETCH)
def test_slots_are_conserved(policy, trace):
    """Whoever comes takes a free slot or the place of one who leaves, so residents are copies less departures."""
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    residents: dict[int, int] = {}
    for decision in decisions(trace, policy, capacity):
        for copy in (copy for wave in decision.waves for copy in wave.demand):
            assert residents.get(copy.slot) == copy.displaced
            assert copy.expert not in residents.values()
            residents[copy.slot] = copy.expert
        assert len(residents) <= capacity.slots
