"""The link and the streams as queues: against recurrences, to the nanosecond, and against closed forms.

Work arrives when the host enqueues it, so a host that turns to the next item at a Poisson instant makes the copy engine
an M/D/1 queue, and its start-up, paid by whoever finds it idle, a set-up time.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.devices.simulated import SimulatedGPU
from moesim.model import Kernel
from tests.plain_hardware import plain_engine
from tests.properties.runs import NO_COSTS

lengths = st.integers(0, 500)


def gpu(**costs):
    return SimulatedGPU(replace(NO_COSTS, **costs), plain_engine())


def kernel(device, duration_ns, name):
    return device.prepare(name, "experts", 0, Kernel(name, 0, duration_ns, 0, 1, 0), 1)


def play(device, program):
    def host():
        program()
        yield from ()

    device.run(host())
    device.environment.run()


def completions_of_copies(arrivals_ns, sizes_bytes, **costs):
    """When each copy has ended, of copies that the host enqueues at given instants."""
    device, done = gpu(**costs), []

    def program():
        for arrival_ns, size_bytes in zip(arrivals_ns, sizes_bytes, strict=True):
            device.host_now_ns = arrival_ns
            device.copy(device.copies, 0, 0, size_bytes)
            done.append(device.record(device.copies))

    play(device, program)
    return [event.completed_ns for event in done]


@settings(max_examples=200)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 500)), min_size=1, max_size=40),
    start_up_ns=st.integers(0, 100), descriptor_ns=st.integers(0, 100),
)
def test_the_link_follows_lindleys_recurrence(jobs, start_up_ns, descriptor_ns):
    """Begin at the arrival or when the one before has ended; the start-up is paid after a gap alone."""
    arrivals = np.cumsum([gap for gap, _ in jobs]).tolist()
    sizes = [size for _, size in jobs]
    expected, end = [], -1
    for arrival, size in zip(arrivals, sizes, strict=True):
        idle = arrival > end
        end = max(arrival, end) + start_up_ns * idle + descriptor_ns + size
        expected.append(end)
    found = completions_of_copies(
        arrivals, sizes, copy_start_up_ns=start_up_ns, copy_descriptor_ns=descriptor_ns
    )
    assert found == expected


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("start_up_ns", [0, 500])
def test_poisson_demand_waits_as_long_as_the_closed_form_says(load, start_up_ns):
    """M/D/1 (Pollaczek and Khinchine): ρD / 2(1 - ρ); with a set-up U for whoever finds the server idle (P. D. Welch,

    "On a generalized M/G/1 queuing process in which the first customer of each busy period receives exceptional
    service", Operations Research 12(5), 1964): + (2U + λU²) / 2(1 + λU), from the arrival to the begin of the bytes.
    """
    service_ns, copies = 1_000, 60_000
    rate = load / service_ns
    arrivals = np.cumsum(np.random.default_rng(7).exponential(1 / rate, copies)).round().astype(np.int64)
    ends = np.array(
        completions_of_copies(arrivals.tolist(), [service_ns] * copies, copy_start_up_ns=start_up_ns)
    )
    waits = ends - arrivals - service_ns
    expected = load * service_ns / (2 * (1 - load))
    expected += (2 * start_up_ns + rate * start_up_ns**2) / (2 * (1 + rate * start_up_ns))
    # Neighbours wait alike, so the error of the mean is judged by the means of long stretches.
    stretches = waits.reshape(60, -1).mean(1)
    assert abs(waits.mean() - expected) < 4 * stretches.std(ddof=1) / np.sqrt(len(stretches))
    assert stretches.std(ddof=1) / np.sqrt(len(stretches)) < 0.1 * expected, "the run says something"


def pipeline_ends(copies_ns, kernels_ns, buffers):
    """When each kernel has ended: copy i into one of `buffers` slots, then kernel i reads it."""
    device, done = gpu(), []

    def program():
        kernels = []
        for number, (copy_ns, kernel_ns) in enumerate(zip(copies_ns, kernels_ns, strict=True)):
            if number >= buffers:  # write after read
                device.wait(device.copies, kernels[number - buffers])
            device.copy(device.copies, number, number % buffers, copy_ns)
            device.wait(device.compute, device.record(device.copies))
            device.launch(device.compute, kernel(device, kernel_ns, f"kernel {number}"))
            kernels.append(device.record(device.compute))
        done.extend(kernels)

    play(device, program)
    return [event.completed_ns for event in done]


@settings(max_examples=200)
@given(stages=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=30), buffers=st.integers(1, 4))
def test_copies_and_kernels_follow_the_max_plus_recurrence(stages, buffers):
    """C_i = max(C_{i-1}, K_{i-buffers}) + c_i and K_i = max(K_{i-1}, C_i) + k_i."""
    copies, kernels = zip(*stages, strict=True)
    copied, run = [], []
    for number, (copy_ns, kernel_ns) in enumerate(stages):
        free = run[number - buffers] if number >= buffers else 0
        copied.append(max(copied[-1] if copied else 0, free) + copy_ns)
        run.append(max(run[-1] if run else 0, copied[-1]) + kernel_ns)
    assert pipeline_ends(copies, kernels, buffers) == run


@settings(max_examples=100)
@given(stages=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=20))
def test_with_slots_enough_the_longest_path_decides(stages):
    """Two machines in a row: the end is max over i of the copies up to i and the kernels from i (S. M. Johnson)."""
    copies, kernels = (np.array(each) for each in zip(*stages, strict=True))
    longest = max(int(copies[: place + 1].sum() + kernels[place:].sum()) for place in range(len(stages)))
    assert pipeline_ends(copies.tolist(), kernels.tolist(), len(stages))[-1] == longest


@pytest.mark.parametrize(("copy_ns", "kernel_ns"), [(300, 100), (100, 300), (200, 200)])
def test_a_steady_pipeline_runs_at_its_slowest_stage(copy_ns, kernel_ns):
    count = 50
    ends = np.diff(pipeline_ends([copy_ns] * count, [kernel_ns] * count, 2))
    assert set(ends.tolist()) == {max(copy_ns, kernel_ns)}
    alone = np.diff(pipeline_ends([copy_ns] * count, [kernel_ns] * count, 1))
    assert set(alone.tolist()) == {copy_ns + kernel_ns}, "one slot: nothing overlaps"
