"""What the host pays: each call of the device, and the way from the GPU back to the host.

Every operation is timed through the very methods that the replay loop calls, so Python's share is in the figures.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

from hw_validate.calibrate.samples import host_ns, quantity
from hw_validate.cpu import CpuDense, CpuDevice
from hw_validate.cuda import CudaGPU
from hw_validate.dense import DenseLayers
from moesim.devices.base import Prepared
from moesim.quantity import Quantity
from moesim.run import paused_collector

Real = TypeVar("Real", CudaGPU, CpuDevice)
"""One of the devices that do what they are told."""


def surroundings(device: CudaGPU | CpuDevice) -> tuple[AbstractContextManager[object], Callable[[], None]]:
    """Where work must be enqueued, and a call that blocks until all of it is done."""
    if isinstance(device, CpuDevice):
        return nullcontext(), device.synchronize
    return torch.cuda.stream(device.compute), torch.cuda.synchronize


@paused_collector()
def device_calls(
    device: Real, dense: DenseLayers | CpuDense, expert_bytes: int, loop_layer: list[float], loop_copy: list[float],
    repetitions: int,
) -> dict[str, Quantity]:
    """The figures of the host. `loop_layer`, `loop_copy`: the loop's own time per event and per copied expert."""
    place, settle = surroundings(device)
    attention = dense.groups["attention", 0]
    experts = Prepared("experts", "experts", 0, dense.model.experts_kernel(1, 1), 0, 2)
    device.serve({0: [0]})
    event = device.record(device.copies)

    def time(call: Any, calls: int = 50) -> list[float]:
        with place:
            return host_ns(call, calls, repetitions, settle)

    copy = time(lambda: device.copy(device.copies, 0, 0, expert_bytes))
    graph = time(lambda: device.launch(device.compute, attention))
    expert = time(lambda: device.launch(device.compute, experts, [0]))
    record = time(lambda: device.record(device.compute))
    wait = time(lambda: device.wait(device.compute, event))
    how = f"mean of 50 calls through the replay's own device, {repetitions} readings, median and 5th to 95th percentile"
    return {
        "enqueue_copy_ns": quantity(
            [each + extra for each, extra in zip(copy, loop_copy, strict=False)],
            f"one copy and the loop's share of it; {how}",
        ),
        "enqueue_graph_ns": quantity(graph, f"one captured group; {how}"),
        "enqueue_kernel_ns": quantity(
            [each / 2 for each in expert], f"half of a launch of the two expert kernels; {how}"
        ),
        "record_event_ns": quantity(record, how),
        "wait_event_ns": quantity(wait, how),
        "loop_layer_ns": quantity(
            loop_layer, "the loop on a device that does nothing, all experts resident, per event"
        ),
    }


@paused_collector()
def round_trips(
    device: Real, dense: DenseLayers | CpuDense, expert_bytes: int, copy_ns: float, router_ns: float,
    enqueue: dict[str, Quantity], repetitions: int,
) -> dict[str, Quantity]:
    """From host to GPU and back: after a kernel, after a copy, and after a copy that a kernel waits for.

    The host's clock and the GPU's cannot be told apart by less than a round trip, so a round trip is what is kept:
    `read_back_ns` holds a launch's latency too, and `copy_start_up_ns` is what a copy's is more than that.
    `copy_ns`: a queued copy of one expert; `router_ns`: the router's kernels.
    """
    router = dense.groups["router", 0]

    def ask() -> None:
        for _ in device.read_back(device.record(device.compute)):
            pass

    def kernel() -> None:
        device.launch(device.compute, router)
        ask()

    def copy_then_kernel() -> None:
        device.copy(device.copies, 0, 0, expert_bytes)
        device.wait(device.compute, device.record(device.copies))
        device.launch(device.compute, router)
        ask()

    def copy_and_kernel_in_one_stream() -> None:
        device.copy(device.compute, 0, 0, expert_bytes)
        device.launch(device.compute, router)
        ask()

    place, settle = surroundings(device)
    with place:
        trips = {
            call.__name__: host_ns(call, 20, repetitions, settle)
            for call in (kernel, copy_then_kernel, copy_and_kernel_in_one_stream)
        }
    launch_ns, copied_ns = enqueue["enqueue_graph_ns"].value, enqueue["enqueue_copy_ns"].value
    back = [each - launch_ns - router_ns for each in trips["kernel"]]
    middle = sorted(back)[len(back) // 2]
    one_stream = trips["copy_and_kernel_in_one_stream"]
    latency = [a - b for a, b in zip(sorted(trips["copy_then_kernel"]), sorted(one_stream), strict=True)]
    start_up = [each - copied_ns - copy_ns - router_ns - middle for each in one_stream]
    how = f"mean of 20 round trips, {repetitions} readings, median and 5th to 95th percentile"
    return {
        "read_back_ns": quantity(back, f"launch of the router and its ids back, less launch and kernel; {how}"),
        "event_latency_ns": quantity(
            latency, f"a kernel behind a copy on another stream against one on the same; {how}",
        ),
        "copy_start_up_ns": quantity(
            start_up, f"a copy and the router behind it, less a queued copy, the kernel and the way back; {how}",
        ),
    }
