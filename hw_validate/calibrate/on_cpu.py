"""The same figures where there is no GPU: CpuDevice's own streams and calls, timed as the GPU's are.

They make a profile of the kind that the simulator reads, so that the whole harness runs anywhere. It is no profile of a
machine that anybody offloads to: both streams and the host share processor, memory and Python's lock, which the
simulator does not know. What is proven with it is what was done, not when.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from threading import Event as Signal
from time import perf_counter_ns

import torch

from hw_validate.calibrate.host import device_calls, round_trips
from hw_validate.calibrate.kernels import CHAIN, expert_shapes, row_of
from hw_validate.calibrate.loop import loop_costs
from hw_validate.calibrate.processor import WEIGHT_BYTES, moved_bytes
from hw_validate.calibrate.profile import LAYERS, Shape
from hw_validate.calibrate.samples import quantity
from hw_validate.cpu import CpuDense, CpuDevice, CpuStream
from hw_validate.cpu_dense import DenseGroup
from hw_validate.measurement import MachineFacts
from hw_validate.storage import HostExperts, Slots
from moesim.devices.base import Prepared
from moesim.hardware import HardwareSpec
from moesim.kernel_table import KernelRow
from moesim.model import ModelSpec
from moesim.quantity import Quantity, exact

LOG_ENTRIES = 100_000
MATRIX = 512
"""Rows and columns of the product by which arithmetic is timed."""


def calibrate_cpu(
    shapes: Sequence[Shape], machine: MachineFacts, *, repetitions: int = 5,
    tell: Callable[[str], None] = lambda line: None,
) -> HardwareSpec:
    """Measure the CPU device on this machine, and return its profile. `shapes`: for which kernels are timed.

    Raises:
        HardwareError: no memory for the experts or slots that are timed.
    """
    tell("memory and arithmetic")
    figures = _machine_figures(machine, repetitions)
    rows: list[KernelRow] = []
    for model_name in dict.fromkeys(shape.model for shape in shapes):
        model = ModelSpec.load(model_name)
        own = sorted((shape for shape in shapes if shape.model == model_name), key=lambda each: each.tokens)
        everyone = len(model.moe_layers) * model.experts
        slots = min(256, everyone, max(model.experts, WEIGHT_BYTES // model.expert_bytes))
        with HostExperts(slots, model.expert_bytes, pinned=False) as host:
            host.fill(torch.device("cpu"), seed=1)
            room = Slots(slots, host, torch.device("cpu"))
            for shape in own:
                tell(f"{model.name}: kernels of steps of {shape.tokens} tokens")
                built = min(LAYERS, model.layers)
                dense = CpuDense(model, built, shape.tokens, shape.sequences, shape.context_tokens)
                device = CpuDevice(dense, host, room, LOG_ENTRIES)
                device.load_everything()
                timed = {(row.kernel, row.tokens, row.hbm_bytes) for row in rows}
                rows += [
                    row for row in _dense_rows(device, dense, repetitions)
                    if (row.kernel, row.tokens, row.hbm_bytes) not in timed  # a prefill's head is a decode step's
                ]
                if "read_back_ns" not in figures:
                    tell(f"{model.name}: copies, and what calls cost the host")
                    figures |= _device_figures(device, dense, model_name, rows, slots, repetitions)
                device.reset()
            tell(f"{model.name}: expert kernels")
            most = own[-1].tokens
            wide = CpuDense(model, 1, most, 1, most)
            rows += _expert_rows(CpuDevice(wide, host, room, LOG_ENTRIES), wide, slots, repetitions)
    return HardwareSpec(
        name="cpu", title=f"CPU device on {machine.processor}", link="host memory to host memory",
        figures=figures, kernels=rows,
        measured_on={key: str(value) for key, value in machine.model_dump().items()},
    )


def chain_ns(stream: CpuStream, enqueue: Callable[[int], object]) -> float:
    """Mean time of what `enqueue` pushes, over a chain of `CHAIN`; none starts before all are there."""
    gate, stamps = Signal(), list[int]()

    def stamp() -> None:
        stamps.append(perf_counter_ns())

    stream.push(gate.wait)
    stream.push(stamp)
    for number in range(CHAIN):
        enqueue(number)
    stream.push(stamp)
    gate.set()
    stream.synchronize()
    begin, end = stamps
    return (end - begin) / CHAIN


def _readings(repetitions: int, stream: CpuStream, enqueue: Callable[[int], object]) -> list[float]:
    """`chain_ns`, several times, after one that nobody reads."""
    return [chain_ns(stream, enqueue) for _ in range(repetitions + 1)][1:]


def _machine_figures(machine: MachineFacts, repetitions: int) -> dict[str, Quantity]:
    """What stands in for a data sheet: measured rates, of which kernels without a row are taken to reach all."""
    seconds, arithmetic, moved = 0.05, [], []
    for _ in range(repetitions):
        begin = perf_counter_ns()
        moved.append(moved_bytes(seconds) * 1e9 / (perf_counter_ns() - begin))
    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    for _ in range(repetitions + 1):
        begin = perf_counter_ns()
        left @ right
        arithmetic.append(2 * MATRIX**3 * 1e9 / (perf_counter_ns() - begin))
    whole = exact(1, "the rate is a measured one")
    return {
        "memory_bytes": exact(machine.memory_bytes, "the system's own account"),
        "hbm_bytes_per_s": quantity(moved, f"numpy.copyto, bytes read plus bytes written, {repetitions} readings"),
        "hbm_share": whole,
        "flops_per_s": quantity(arithmetic[1:], f"product of two float32 matrices of {MATRIX} rows and columns"),
        "flops_share": whole,
    }


def _device_figures(
    device: CpuDevice, dense: CpuDense, model_name: str, rows: Sequence[KernelRow], slots: int, repetitions: int
) -> dict[str, Quantity]:
    """The link, the shortest kernel, and the host's calls."""
    how = f"chains of {CHAIN}, {repetitions} readings, median and 5th to 95th percentile"
    expert_bytes = dense.model.expert_bytes

    def copy(number: int) -> None:
        device.copy(device.copies, number % slots, number % slots, expert_bytes)
        device.record(device.copies)

    bare = _readings(
        repetitions, device.copies,
        lambda number: device.copies.push(lambda: device.bring(number % slots, number % slots)),
    )
    queued = _readings(repetitions, device.copies, copy)
    middle = sorted(bare)[len(bare) // 2]
    nothing = DenseGroup("nothing", "attention", 0, dense.model.router_kernel(1), 0, 1, lambda: None)
    figures = {
        "link_bytes_per_s": quantity(
            [expert_bytes * 1e9 / each for each in bare], f"one expert from host memory to host memory; {how}"
        ),
        "copy_descriptor_ns": quantity(
            [each - middle for each in queued], f"a copy through the device less its bytes; {how}"
        ),
        "kernel_floor_ns": quantity(
            _readings(repetitions, device.compute, lambda _: device.launch(device.compute, nothing)),
            f"a group without work; {how}",
        ),
    }
    device.reset()
    resident, per_copy = loop_costs(model_name, repetitions)
    calls = device_calls(device, dense, expert_bytes, resident, per_copy, repetitions)
    copy_ns = figures["copy_descriptor_ns"].value + expert_bytes * 1e9 / figures["link_bytes_per_s"].value
    router_ns = next(row.ns for row in rows if row.kernel == "router")
    device.reset()
    return figures | calls | round_trips(device, dense, expert_bytes, copy_ns, router_ns, calls, repetitions)


def _dense_rows(device: CpuDevice, dense: CpuDense, repetitions: int) -> list[KernelRow]:
    """Attention, router and head at one batch and context, over a chain of different layers."""
    rows = []
    for name in ("attention", "router", "head"):
        groups = [group for (of, _), group in dense.groups.items() if of == name]

        def enqueue(number: int, groups: list[DenseGroup] = groups) -> None:
            device.launch(device.compute, groups[number % len(groups)])

        rows.append(row_of(groups[0].kernel, _readings(repetitions, device.compute, enqueue)))
    device.reset()
    return rows


def _expert_rows(device: CpuDevice, dense: CpuDense, slots: int, repetitions: int) -> list[KernelRow]:
    """Experts by how many there are and how many tokens each serves, over a chain of different slots."""
    rows = []
    held, pairs = cycle(range(slots)), len(dense.pair_out)
    for count, tokens in expert_shapes(dense.model.experts, dense.tokens):
        if count * tokens > pairs or count > slots:
            continue
        kernel = dense.model.experts_kernel(count, count * tokens)
        prepared = Prepared("experts", "experts", 0, kernel, 0, 2)
        groups = [[next(held) for _ in range(count)] for _ in range(CHAIN)]
        device.serve({
            slot: range(place * tokens, (place + 1) * tokens) for group in groups for place, slot in enumerate(group)
        })

        def enqueue(number: int, groups: list[list[int]] = groups, prepared: Prepared = prepared) -> None:
            device.launch(device.compute, prepared, groups[number])

        rows.append(row_of(kernel, _readings(repetitions, device.compute, enqueue)))
        device.reset()
    return rows
