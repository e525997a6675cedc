"""How long every kernel group runs, by shape and batch: rows of the profile's kernel table.

Groups are enqueued behind a kernel that keeps the stream busy, so the host is not in the reading; each reading is the
mean over a chain of different layers, or slots, so that weights come from the GPU's memory and not from its cache.
"""

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import torch

from hw_validate.cuda import CudaGPU
from hw_validate.dense import MAX_PAIRS, DenseLayers
from moesim.devices.base import Prepared
from moesim.kernel_table import KernelRow
from moesim.model import Kernel

EXPERTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TOKENS_EACH = (1, 2, 4, 8, 16)
TOKENS_OF_ONE = (32, 64)
"""A single expert serves up to a whole prefill."""
CHAIN = 24


def chain_ns(enqueue: Callable[[int], None], stream: torch.cuda.Stream, busy: Callable[[int], None]) -> float:
    """Mean time of a group over a chain of `CHAIN`, by events around it."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        busy(1_000_000)
        begin.record()
        for number in range(CHAIN):
            enqueue(number)
        end.record()
    stream.synchronize()
    return float(begin.elapsed_time(end) * 1e6 / CHAIN)


def row_of(kernel: Kernel, readings: list[float]) -> KernelRow:
    """A row of the table: median, 5th and 95th percentile. Nothing takes less than the clock's tick of 1 ns."""
    low, centre, high = np.percentile(np.maximum(readings, 1), [5, 50, 95])
    return KernelRow(
        kernel=kernel.name, mode="graph", hbm_bytes=kernel.hbm_bytes, experts=kernel.experts, tokens=kernel.tokens,
        ns=round(centre), low_ns=round(min(low, centre)), high_ns=round(max(high, centre)),
    )


def dense_rows(dense: DenseLayers, repetitions: int) -> list[KernelRow]:
    """Attention, router and head at one batch and context. The router is what it adds to a chain of attentions."""
    layers = range(dense.layers)
    attention = [dense.groups["attention", layer] for layer in layers]
    router = [dense.groups["router", layer] for layer in layers]
    head = dense.groups["head", -1]
    busy = dense.busy()

    def alone(number: int) -> None:
        attention[number % len(attention)].graph.replay()

    def both(number: int) -> None:
        attention[number % len(attention)].graph.replay()
        router[number % len(router)].graph.replay()

    readings: dict[str, list[float]] = {"attention": [], "router": [], "head": []}
    for _ in range(repetitions + 1):
        only = chain_ns(alone, dense.stream, busy)
        readings["attention"].append(only)
        readings["router"].append(chain_ns(both, dense.stream, busy) - only)
        readings["head"].append(chain_ns(lambda _: head.graph.replay(), dense.stream, busy))
    kernels = {"attention": attention[0].kernel, "router": router[0].kernel, "head": head.kernel}
    return [row_of(kernels[name], values[1:]) for name, values in readings.items()]


def expert_shapes(experts: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """(distinct experts, tokens of each) of the rows to take."""
    for count in (each for each in EXPERTS if each <= experts):
        for tokens in (*TOKENS_EACH, *(TOKENS_OF_ONE if count == 1 else ())):
            if tokens <= most_tokens and count * tokens <= MAX_PAIRS:
                yield count, tokens


def expert_rows(device: CudaGPU, dense: DenseLayers, slots: int, repetitions: int) -> list[KernelRow]:
    """The expert kernels of one model; `device` has `slots` slots that hold finite weights."""
    rows = []
    busy = dense.busy()
    pairs = len(dense.pair_out)
    for count, tokens in expert_shapes(dense.model.experts, pairs // dense.model.top_k):
        if count * tokens > pairs or count > slots:
            continue
        kernel = dense.model.experts_kernel(count, count * tokens)
        prepared = Prepared("experts", "experts", 0, kernel, 0, 2)
        held = cycle(range(slots))
        groups = [[next(held) for _ in range(count)] for _ in range(CHAIN)]
        device.serve({
            slot: range(place * tokens, (place + 1) * tokens) for group in groups for place, slot in enumerate(group)
        })

        def enqueue(number: int, groups: list[list[int]] = groups, prepared: Prepared = prepared) -> None:
            device.launch(device.compute, prepared, groups[number])

        readings = [chain_ns(enqueue, dense.stream, busy) for _ in range(repetitions + 1)]
        rows.append(row_of(kernel, readings[1:]))
        device.reset()
    return rows


def switch_ns(device: CudaGPU, dense: DenseLayers, slots: int, repetitions: int) -> list[float]:
    """What a layer's chain of attention, router and experts takes beyond its parts."""
    layers, top_k = dense.layers, dense.model.top_k
    busy = dense.busy()
    prepared = Prepared("experts", "experts", 0, dense.model.experts_kernel(top_k, top_k), 0, 2)
    held = cycle(range(slots))
    groups = [[next(held) for _ in range(top_k)] for _ in range(CHAIN)]
    device.serve({slot: [place] for group in groups for place, slot in enumerate(group)})

    def captured(number: int) -> None:
        dense.groups["attention", number % layers].graph.replay()
        dense.groups["router", number % layers].graph.replay()

    def single(number: int) -> None:
        device.launch(device.compute, prepared, groups[number])

    def layer(number: int) -> None:
        captured(number)
        single(number)

    readings = []
    for _ in range(repetitions + 1):
        whole, first, second = (chain_ns(each, dense.stream, busy) for each in (layer, captured, single))
        readings.append(max(0.0, whole - first - second))
    device.reset()
    return readings[1:]
