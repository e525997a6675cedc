"""Host memory shared by flows: closed forms, and a fluid in tiny steps that knows nothing of the events."""

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.devices.host_memory import HostMemory


def ends(flows, capacity):
    """When each flow ends: (begins at, lasts alone, wants bytes per second). And the bytes that memory moved."""
    environment = simpy.Environment()
    memory = HostMemory(environment, capacity)
    found = {}

    def one(number, begin, alone, wants):
        yield environment.timeout(begin)
        yield from memory.flow(alone, wants)
        found[number] = int(environment.now)

    for number, flow in enumerate(flows):
        environment.process(one(number, *flow))
    environment.run()
    return [found[number] for number in range(len(flows))], memory.moved_bytes


def in_tiny_steps(flows, capacity, step=0.01):
    """The same by walking through time: in each little step every flow moves its share."""
    left = [alone * wants for _, alone, wants in flows]
    found, now = [None] * len(flows), 0.0
    while None in found:
        here = [n for n, (begin, _, _) in enumerate(flows) if begin <= now + step / 2 and found[n] is None]
        total = sum(flows[n][2] for n in here)
        for n in here:
            left[n] -= flows[n][2] * min(1.0, capacity / total) * step
            if left[n] <= flows[n][2] * step / 2:
                found[n] = now + step
        now += step
    return found


def test_a_flow_alone_and_flows_that_fit_take_their_own_time():
    assert ends([(5, 100, 60e9)], 100e9)[0] == [105]
    assert ends([(0, 100, 60e9), (10, 50, 40e9)], 100e9)[0] == [100, 60]
    assert ends([(3, 0, 1e9)], 1e9)[0] == [3]


def test_two_flows_that_want_too_much_are_slowed_by_one_factor():
    # Both want 80 of 100: 1.6 times as long while both run. The short one ends at 160, when the long one has had 100.
    assert ends([(0, 100, 80e9), (0, 300, 80e9)], 100e9)[0] == [160, 360]
    # A copy of 400 ns at 50; an expert of 200 ns at 100 comes at 100: 1.5 times as long until it ends at 400.
    assert ends([(0, 400, 50e9), (100, 200, 100e9)], 100e9)[0] == [500, 400]


@given(
    begin=st.integers(0, 1000), first=st.integers(1, 1000), second=st.integers(1, 1000),
    wants=st.tuples(st.integers(1, 200), st.integers(1, 200)), capacity=st.integers(1, 300),
)
def test_closed_form_of_two_flows(begin, first, second, wants, capacity):
    """The first begins at 0, the second at `begin`; each slowed alone where it wants more than there is."""
    alone = [max(1.0, each / capacity) for each in wants]
    both = max(1.0, sum(wants) / capacity)
    if first * alone[0] <= begin:
        expected = [first * alone[0], begin + second * alone[1]]
    else:
        left = first - begin / alone[0]
        together = min(left, second) * both
        if left < second:
            expected = [begin + together, begin + together + (second - left) * alone[1]]
        else:
            expected = [begin + together + (left - second) * alone[0], begin + together]
    got, _ = ends([(0, first, wants[0]), (begin, second, wants[1])], capacity)
    # Each end is a whole nanosecond, and the second to end inherits the first one's half.
    assert got == [pytest.approx(each, abs=0.5 + 0.5 * both + 1e-6) for each in expected]


FLOWS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=4,
)


@settings(max_examples=40)
@given(FLOWS, st.integers(2, 20))
def test_against_a_fluid_in_tiny_steps(flows, capacity):
    got, moved = ends(flows, capacity)
    worst = max(1.0, sum(wants for _, _, wants in flows) / capacity)
    assert got == [pytest.approx(each, abs=0.2 + worst * len(flows)) for each in in_tiny_steps(flows, capacity)]
    assert moved == pytest.approx(sum(alone * wants for _, alone, wants in flows) / 1e9, abs=40e-9)
    busy = max(got) - min(begin for begin, _, _ in flows)
    assert moved <= capacity * (busy + len(flows)) / 1e9, "never faster than the memory"


def test_equal_flows_end_together_and_leave_in_the_order_in_which_they_came():
    assert ends([(0, 90, 50e9)] * 3, 100e9)[0] == [135, 135, 135]
