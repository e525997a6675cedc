"""What must hold of a run's time, whatever the trace and the machine."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.devices.simulated import SimulatedGPU
from moesim.events import steps
from tests.plain_hardware import PlainHardware, plain_engine
from tests.properties.runs import (
    COSTS,
    KERNELS_NS,
    NO_COSTS,
    WITH_PREFETCH,
    WITHOUT_PREFETCH,
    foreseeing_nothing,
    largest_event,
    renumbered,
    timed,
    traces,
)
from tests.traces_for_tests import random_trace

few = settings(max_examples=15)


@st.composite
def machines(draw):
    """Every cost drawn on its own: links that are never the limit and links that always are."""
    costs = {name: draw(st.integers(0, 300)) for name in COSTS}
    rate = draw(st.sampled_from([1e8, 1e9, 7e9, 1e12]))
    return PlainHardware(link_bytes_per_s=rate, kernels_ns=KERNELS_NS, **costs)


def times(outcomes):
    return [(each.begin_ns, each.end_ns, each.time, each.copies) for each in outcomes]


@few
@given(trace=traces(), machine=machines(), pieces=st.integers(1, 3))
@pytest.mark.parametrize("policy", [*WITHOUT_PREFETCH, *WITH_PREFETCH])
def test_time_requests_bytes_and_the_link_are_conserved(policy, trace, machine, pieces):
    if policy in WITH_PREFETCH and not trace.predicted:
        return
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    engine = plain_engine(copies_per_expert=pieces)
    outcomes, device, model = timed(trace, policy, capacity, machine, engine=engine)
    # Every step comes once and in order, and with it every token of every request.
    rows = [row for each in outcomes for row in range(each.step.rows.start, each.step.rows.stop)]
    assert rows == list(range(trace.tokens))
    assert len(outcomes) == len(list(steps(trace)))
    # No instant is lost or counted twice.
    assert [each.begin_ns for each in outcomes] == [0, *(each.end_ns for each in outcomes[:-1])]
    assert all(each.time.total_ns == each.end_ns - each.begin_ns for each in outcomes)
    # Whoever was decided to be copied was, and the link was busy for just these bytes and their overheads.
    decided = sum(
        len(decision.prefetch) + sum(len(wave.demand) for wave in decision.waves)
        for each in outcomes for decision in each.decisions
    )
    copied = sum(each.copies for each in outcomes)
    assert copied == decided
    exact = copied * (model.expert_bytes * 1e9 / machine.link_bytes_per_s + pieces * machine.copy_descriptor_ns)
    assert device.link_busy_ns >= exact - copied * pieces
    # A stream that pauses between pieces holds the engine, so an upper bound also counts the host's enqueueing.
    most = exact + copied * pieces * (1 + machine.copy_start_up_ns + machine.enqueue_copy_ns)
    assert device.link_busy_ns <= most


@few
@given(trace=traces())
@pytest.mark.parametrize("policy", WITHOUT_PREFETCH)
def test_with_an_endless_link_and_no_costs_time_is_that_of_all_resident(policy, trace):
    endless = replace(NO_COSTS, link_bytes_per_s=1e30, kernels_ns=KERNELS_NS)
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    everything = Capacity(trace.layers * trace.n_experts, everything=True)
    missing, _, _ = timed(trace, policy, capacity, endless)
    resident, _, _ = timed(trace, "all-resident", everything, endless)
    assert [each.end_ns for each in missing] == [each.end_ns for each in resident]
    assert sum(each.copies for each in missing) > 0


@few
@given(trace=traces(), machine=machines())
@pytest.mark.parametrize("policy", WITHOUT_PREFETCH)
def test_without_a_cache_every_policy_is_on_demand(policy, trace, machine):
    workspace = Capacity(2 * largest_event(trace), workspace=True)
    kept, _, _ = timed(trace, policy, workspace, machine)
    demand, _, _ = timed(trace, "on-demand", workspace, machine)
    assert times(kept) == times(demand)


@few
@given(trace=traces(), machine=machines(), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("policy", ["lru", "lfu", "least-stale[key=cyclic]", "belady", "prefetch-and-refetch"])
def test_what_experts_are_called_changes_no_instant(policy, trace, machine, seed):
    if policy in WITH_PREFETCH and not trace.predicted:
        return
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    before, _, _ = timed(trace, policy, capacity, machine)
    after, _, _ = timed(renumbered(trace, seed), policy, capacity, machine)
    assert times(before) == times(after)


@few
@given(seed=st.integers(0, 2**32 - 1), machine=machines(), part=st.sampled_from([0.3, 0.6, 1.0]))
def test_a_prefetch_of_nothing_takes_no_time(seed, machine, part):
    trace = random_trace(24, seed=seed)
    capacity = Capacity(int(part * trace.layers * trace.n_experts))
    nothing, _, _ = timed(foreseeing_nothing(trace), "prefetch-and-refetch", capacity, machine)
    without, _, _ = timed(trace, "lru", capacity, machine)
    assert times(nothing) == times(without)


def copy_times(machine, sizes_bytes):
    """How long each copy of a row takes, each enqueued when the one before has ended."""
    device, ends = SimulatedGPU(machine, plain_engine()), [0]

    def program():
        for size_bytes in sizes_bytes:
            device.copy(device.copies, 0, 0, size_bytes)
            ends.append((yield from device.read_back(device.record(device.copies))))

    device.run(program())
    return np.diff(ends)


@settings(max_examples=200)
@given(
    sizes_bytes=st.lists(st.integers(1, 400_000_000), min_size=1, max_size=20),
    rate=st.floats(1e6, 1e12), start_up_ns=st.integers(0, 10_000), descriptor_ns=st.integers(0, 10_000),
    factor=st.integers(1, 1000),
)
def test_a_link_of_other_speed_and_latency_scales_every_copy(sizes_bytes, rate, start_up_ns, descriptor_ns, factor):
    slow = replace(
        NO_COSTS, link_bytes_per_s=rate, copy_start_up_ns=factor * start_up_ns,
        copy_descriptor_ns=factor * descriptor_ns,
    )
    fast = replace(
        NO_COSTS, link_bytes_per_s=rate * factor, copy_start_up_ns=start_up_ns, copy_descriptor_ns=descriptor_ns
    )
    scaled = copy_times(slow, sizes_bytes) / factor
    assert (abs(scaled - copy_times(fast, sizes_bytes)) <= 1).all()
