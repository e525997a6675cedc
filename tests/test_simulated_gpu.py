"""The virtual GPU, one mechanism at a time, against instants worked out by hand."""

import pytest

from moesim.devices.simulated import SimulatedGPU, SimulatedStream
from moesim.model import Kernel
from tests.plain_hardware import PlainHardware, plain_engine


def gpu(figures=None, **engine_options):
    return SimulatedGPU(figures or PlainHardware(), plain_engine(**engine_options))


def kernel(device, duration_ns, launches=1, kind="attention"):
    return device.prepare(kind, kind, 0, Kernel(kind, 0, duration_ns, 0, 1, 0), launches)


def play(device, program):
    """Run a host program to the end, and then whatever it left enqueued."""
    device.run(program)
    device.environment.run()


def test_a_copy_pays_the_start_up_only_when_the_engine_was_idle():
    device, done = gpu(), []

    def program():
        for expert in range(3):
            device.copy(device.copies, expert, expert, 100)
            done.append(device.record(device.copies))
        yield from device.read_back(done[-1])

    play(device, program())
    # Enqueued at 3; 10 + 2 + 100 for the first, 2 + 100 for those that queue behind it.
    assert [event.completed_ns for event in done] == [115, 217, 319]


def test_eight_queued_copies_take_what_was_measured_on_an_h200():
    """1,409 us for eight queued 9.4 MB copies: 15 us once, 2.7 us each, 54.9 GB/s (docs/hardware-profiles.md)."""
    figures = PlainHardware(54.9e9, copy_start_up_ns=15_000, copy_descriptor_ns=2_700, enqueue_copy_ns=0)
    device, done = gpu(figures), []

    def program():
        for expert in range(8):
            device.copy(device.copies, expert, expert, 9_437_184)
        done.append(device.record(device.copies))
        yield from device.read_back(done[0])

    play(device, program())
    assert done[0].completed_ns == pytest.approx(1_409_000, rel=0.003)


def test_pieces_that_the_host_enqueues_too_slowly_find_the_engine_idle_again():
    device, done = gpu(PlainHardware(enqueue_copy_ns=200), copies_per_expert=2), []

    def program():
        device.copy(device.copies, 0, 0, 100)
        done.append(device.record(device.copies))
        yield from device.read_back(done[0])

    play(device, program())
    assert done[0].completed_ns == 400 + 10 + 2 + 50  # the second piece is there at 400, long after the first ended


def test_the_engine_stays_on_a_stream_until_nothing_there_is_ready():
    device = gpu()
    other = SimulatedStream(device, "prefetch")
    done = {}

    def program():
        device.copy(device.copies, 0, 0, 100)  # enqueued at 3
        done["first"] = device.record(device.copies)
        device.copy(other, 1, 1, 100)  # at 6
        done["other"] = device.record(other)
        device.copy(device.copies, 2, 2, 100)  # at 9, before the first has ended
        done["second"] = device.record(device.copies)
        yield from device.read_back(done["other"])

    play(device, program())
    # The other stream has waited since 6, and still comes last.
    assert done["first"].completed_ns == 115
    assert done["second"].completed_ns == 217
    assert done["other"].completed_ns == 319


def test_a_stream_that_runs_dry_gives_the_engine_away():
    device = gpu()
    other = SimulatedStream(device, "prefetch")
    done = {}

    def program():
        device.copy(device.copies, 0, 0, 100)
        device.copy(other, 1, 1, 100)
        done["other"] = device.record(other)
        first = device.record(device.copies)
        yield from device.read_back(first)  # at 115 + 7
        device.copy(device.copies, 2, 2, 100)
        done["late"] = device.record(device.copies)
        yield from device.read_back(done["late"])

    play(device, program())
    assert done["other"].completed_ns == 217
    assert done["late"].completed_ns == 319


def test_a_kernel_waits_for_its_copy_and_not_for_the_one_behind_it():
    device, runs = gpu(), []

    def program():
        issued = device.copy(device.copies, 0, 0, 100)
        first = device.record(device.copies, issued)
        device.copy(device.copies, 1, 1, 100)
        device.wait(device.compute, first)
        runs.append(device.launch(device.compute, kernel(device, 30, kind="experts")))
        yield from device.read_back(device.record(device.compute))

    play(device, program())
    assert (runs[0].ready_ns, runs[0].start_ns, runs[0].end_ns) == (11, 115, 145)
    assert [event.issued_ns for event in runs[0].waits] == [3]


@pytest.mark.parametrize(("kernel_ns", "second_starts_ns"), [(29, 38), (30, 38), (31, 44)])
def test_only_a_stream_that_really_has_to_wait_pays_the_event_latency(kernel_ns, second_starts_ns):
    """The first copy ends at 38, the kernel before, then or after: a tie does not hang on who is looked at first."""
    device, done = gpu(PlainHardware(event_latency_ns=5)), []

    def program():
        device.copy(device.copies, 0, 0, 23)
        device.launch(device.compute, kernel(device, kernel_ns))  # enqueued at 8
        device.wait(device.copies, device.record(device.compute))
        done.append(device.record(device.copies))
        yield from device.read_back(done[0])

    play(device, program())
    assert done[0].completed_ns == second_starts_ns


@pytest.mark.parametrize(("launches", "duration_ns", "end_ns"), [(1, 40, 45), (4, 400, 405), (4, 8, 22)])
def test_a_group_of_kernels_runs_no_faster_than_the_host_launches_it(launches, duration_ns, end_ns):
    """First launch at 5, then every 5: eight nanoseconds of work in four kernels end 2 after the last launch."""
    device, runs = gpu(), []

    def program():
        runs.append(device.launch(device.compute, kernel(device, duration_ns, launches)))
        yield from device.read_back(device.record(device.compute))

    play(device, program())
    assert runs[0].end_ns == end_ns
    assert runs[0].busy_ns == duration_ns


def test_a_captured_graph_is_one_launch():
    device, runs = gpu(mode="graph"), []

    def program():
        runs.append(device.launch(device.compute, kernel(device, 8, launches=1)))
        yield from device.read_back(device.record(device.compute))

    play(device, program())
    assert (runs[0].start_ns, runs[0].end_ns) == (4, 12)


def test_read_back_costs_host_time_from_the_end_of_the_kernel_or_from_the_call_if_that_is_later():
    device, instants = gpu(), []

    def program():
        device.launch(device.compute, kernel(device, 30))
        instants.append((yield from device.read_back(device.record(device.compute))))
        event = device.record(device.compute)
        for expert in range(20):  # keeps the host busy for 60 ns
            device.copy(device.copies, expert, expert, 100)
        instants.append((yield from device.read_back(event)))

    play(device, program())
    assert instants == [35 + 7, 42 + 60 + 7]
    assert device.blocked == [(5, 35)]
