"""The SimPy device against the serial one, where nothing overlaps: every step of random traces on random machines.

The misses come from event-atomic caching in plain Python, so neither decisions nor times are the package's own.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.events import steps
from tests.oracles.event_atomic import Event, simulate
from tests.oracles.serial_device import step_ends_ns
from tests.plain_hardware import PlainHardware, plain_engine
from tests.properties.runs import KERNELS_NS, largest_event, timed, traces


def misses_of(trace, slots, policy):
    """By step and layer."""
    events = [
        Event(number, layer, tuple(step.touch_order(layer)), first_use=tuple(step.accesses[layer]))
        for number, step in enumerate(steps(trace)) for layer in range(trace.layers)
    ]
    counted = [0] * len(events)
    for access in simulate(events, slots, policy).accesses:
        counted[access.event] += not access.hit
    return [counted[at : at + trace.layers] for at in range(0, len(counted), trace.layers)]


@settings(max_examples=50)
@given(
    trace=traces(), part=st.sampled_from([0.0, 0.4, 0.8]), rate=st.sampled_from([10**8, 10**9, 7 * 10**9]),
    start_up_ns=st.integers(0, 300), descriptor_ns=st.integers(0, 60), enqueue_copy_ns=st.integers(0, 150),
    enqueue_kernel_ns=st.integers(0, 40), read_back_ns=st.integers(0, 300), pieces=st.sampled_from([1, 2]),
)
@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "belady"])
def test_every_step_ends_when_the_serial_device_says(
    policy, trace, part, rate, start_up_ns, descriptor_ns, enqueue_copy_ns, enqueue_kernel_ns, read_back_ns, pieces
):
    slots = max(largest_event(trace), int(part * trace.layers * trace.n_experts))
    machine = PlainHardware(
        link_bytes_per_s=rate, copy_start_up_ns=start_up_ns, copy_descriptor_ns=descriptor_ns,
        enqueue_copy_ns=enqueue_copy_ns, enqueue_kernel_ns=enqueue_kernel_ns, read_back_ns=read_back_ns,
        kernels_ns=KERNELS_NS,
    )
    found, _, model = timed(trace, policy, Capacity(slots), machine, engine=plain_engine(copies_per_expert=pieces))
    expected = step_ends_ns(
        misses_of(trace, slots, policy), expert_bytes=model.expert_bytes, pieces=pieces, bytes_per_s=rate,
        start_up_ns=start_up_ns, descriptor_ns=descriptor_ns, enqueue_copy_ns=enqueue_copy_ns,
        enqueue_kernel_ns=enqueue_kernel_ns, read_back_ns=read_back_ns,
        **{f"{name}_ns": time for name, time in KERNELS_NS.items()},
    )
    assert [each.end_ns for each in found] == expected
