"""The CPU beside the virtual GPU: its stream, its results, and the memory that its experts share with copies."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.devices.simulated import SimulatedGPU, SimulatedStream
from moesim.devices.simulated_cpu import SimulatedGPUAndCPU
from moesim.model import Kernel
from tests.plain_hardware import PlainHardware, plain_engine


@dataclass(frozen=True)
class PlainHost(PlainHardware):
    """Experts on the CPU last a nanosecond for two bytes; memory gives three bytes a nanosecond, or as said."""

    host_bytes_per_s: float = 3e9
    cpu_ns: dict = field(default_factory=dict)

    def cpu_expert_ns(self, kernel):
        return self.cpu_ns.get(kernel.tokens, kernel.hbm_bytes // 2)


def expert(size_bytes, tokens=1):
    return Kernel("cpu expert", 0, size_bytes, 1, tokens, 0)


def play(program, hardware, device_type=SimulatedGPUAndCPU, **engine_options):
    device = device_type(hardware, plain_engine(**engine_options))
    device.run(program(device))
    device.environment.run()
    return device


def test_experts_run_one_after_another_and_their_result_passes_by_a_busy_engine():
    done = {}

    def program(device):
        device.execute(0, expert(200))
        device.execute(1, expert(100))
        device.copy(device.copies, 2, 0, 1000)  # enqueued at 3
        device.wait(device.results, device.record(device.cpu))
        device.return_result(4096)  # at 6
        done["result"] = device.record(device.results)
        yield from device.read_back(done["result"])

    device = play(program, PlainHost())
    assert device.cpu_runs == [(0, 100), (100, 150)]
    assert done["result"].completed_ns == 150 + 10 + 2


def test_a_larger_result_queues_on_the_link_behind_the_copies_before_it():
    done = {}

    def program(device):
        device.execute(0, expert(200))
        device.copy(device.copies, 2, 0, 5000)  # from 3 to 5015
        device.wait(device.results, device.record(device.cpu))
        device.return_result(5000)
        done["result"] = device.record(device.results)
        yield from device.read_back(done["result"])

    play(program, PlainHost())
    assert done["result"].completed_ns == 3 + 10 + 2 + 5000 + 2 + 5000


def test_activations_of_a_batch_travel_before_its_experts():
    def program(device):
        device.bring_activations(4096)  # came with the ids
        device.execute(0, expert(200))
        device.bring_activations(5000)
        device.execute(1, expert(200))
        yield from device.read_back(device.record(device.cpu))

    assert play(program, PlainHost()).cpu_runs == [(0, 100), (5100, 5200)]


def test_a_copy_and_an_expert_slow_each_other_by_one_factor():
    done = {}

    def program(device):
        device.copy(device.copies, 0, 0, 300)  # set up from 3 to 15, then 300 ns at 1 byte a nanosecond
        done["copy"] = device.record(device.copies)
        device.execute(1, expert(600))  # 300 ns at 2 bytes a nanosecond, from 3
        done["expert"] = device.record(device.cpu)
        yield from device.read_back(done["copy"])

    device = play(program, PlainHost(host_bytes_per_s=2e9))
    # Together they want 3 of 2: 1.5 times as long. The expert has 288 ns left at 15, and 432 in company.
    assert done["expert"].completed_ns == 15 + 432
    assert done["copy"].completed_ns == 15 + 432 + 12
    assert device.host_memory.moved_bytes * 1e9 == 900 * 1e9


@settings(max_examples=60)
@given(
    copies=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 1), st.booleans()), min_size=1, max_size=12),
    pieces=st.integers(1, 3), enqueue=st.sampled_from([0, 3, 200]), captured=st.booleans(),
)
def test_copies_alone_take_as_long_through_shared_memory_as_without_it(copies, pieces, enqueue, captured):
    """Two streams of copies, with kernels and read-backs between them, on both devices: every instant is the same."""

    def program_of(ends):
        def program(device):
            streams = [device.copies, other[device]]
            for number, (size, stream, blocks) in enumerate(copies):
                device.copy(streams[stream], number, number, size)
                event = device.record(streams[stream])
                ends.append(event)
                device.wait(device.compute, event)
                device.launch(device.compute, device.prepare("k", "experts", 0, Kernel("k", 0, size // 2, 0, 1, 0), 1))
                if blocks:
                    yield from device.read_back(device.record(device.compute))

        return program

    other = {}
    found = []
    hardware = replace(PlainHost(), enqueue_copy_ns=enqueue)
    for device_type in (SimulatedGPU, SimulatedGPUAndCPU):
        ends = []

        def program(device, ends=ends):
            other[device] = SimulatedStream(device, "other")
            yield from program_of(ends)(device)

        device = play(program, hardware, device_type, copies_per_expert=pieces)
        found.append(([event.completed_ns for event in ends], device.link_busy_ns, [run.end_ns for run in device.runs]))
    assert found[0] == found[1]
