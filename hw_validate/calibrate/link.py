"""The host-to-device link: what a copy costs by its size, alone and behind others, and what disturbs it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event as Flag

import numpy as np
import torch

from hw_validate.calibrate.samples import line, quantity
from hw_validate.driver import host_to_device
from moesim.quantity import Quantity

SIZES_BYTES = (4_096, 65_536, 1_048_576, 4_194_304, 9_437_184, 12_582_912, 37_748_736, 150_994_944, 352_321_536)
FITTED_BYTES = 4_000_000
"""Experts are larger than this; start-up and rate are fitted where they are used."""
KERNEL_CYCLES = 10_000
"""Of the kernel that waits for a copy: some microseconds, as an expert's."""
QUEUED_BYTES = 400_000_000
"""So much is queued for a reading of the rate."""


@dataclass(frozen=True)
class Link:
    """Figures of the profile, and observations that no run uses yet."""

    figures: dict[str, Quantity]
    observations: dict[str, Quantity]


class LinkBench:
    """Copies from one piece of host memory to one of the GPU's."""

    def __init__(self, pinned: torch.Tensor) -> None:
        """`pinned`: uint8 on the host, at least 1 GB."""
        self._host = pinned
        self._gpu = torch.empty(pinned.numel(), dtype=torch.uint8, device="cuda")
        self._stream, self._kernels = torch.cuda.Stream(), torch.cuda.Stream()
        self._copy = host_to_device()

    def queued_ns(self, size_bytes: int, *, records: bool, waiting: bool = False, pieces: int = 1) -> float:
        """Mean time of a copy behind others; with an event behind each, and a kernel that waits for it, or without."""
        count = max(2, min(64, QUEUED_BYTES // size_bytes))
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        between = [torch.cuda.Event() for _ in range(count)]
        room = self._host.numel() // size_bytes
        piece = size_bytes // pieces
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(3_000_000)  # the host enqueues meanwhile
            begin.record()
            for number in range(count):
                offset = number % room * size_bytes
                for part in range(pieces):
                    at = offset + part * piece
                    self._copy(self._gpu.data_ptr() + at, self._host.data_ptr() + at, piece, self._stream.cuda_stream)
                if records:
                    between[number].record()
                if waiting:
                    self._kernels.wait_event(between[number])
                    with torch.cuda.stream(self._kernels):
                        torch.cuda._sleep(KERNEL_CYCLES)
            end.record()
        self._stream.synchronize()
        return float(begin.elapsed_time(end) * 1e6 / count)

    def alone_ns(self, size_bytes: int) -> float:
        """Time of a copy on an idle engine, by events around it."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            begin.record()
            self._copy(self._gpu.data_ptr(), self._host.data_ptr(), size_bytes, self._stream.cuda_stream)
            end.record()
        self._stream.synchronize()
        return float(begin.elapsed_time(end) * 1e6)

    def pageable_ns(self, size_bytes: int) -> float:
        """Time of a copy out of memory that is not pinned, as torch does it."""
        host = torch.ones(size_bytes, dtype=torch.uint8)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(4):
            self._gpu[:size_bytes].copy_(host)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end) * 1e6 / 4)

    def two_streams_ns(self, size_bytes: int) -> float:
        """Mean time of a copy when two streams share the engine."""
        other = torch.cuda.Stream()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record(self._stream)
        other.wait_event(begin)
        for number in range(16):
            stream = other if number % 2 else self._stream
            at = number * size_bytes
            self._copy(self._gpu.data_ptr() + at, self._host.data_ptr() + at, size_bytes, stream.cuda_stream)
        self._stream.wait_stream(other)
        end.record(self._stream)
        self._stream.synchronize()
        return float(begin.elapsed_time(end) * 1e6 / 16)

    def under(self, load: Callable[[Flag], object], threads: int, size_bytes: int) -> float:
        """Mean time of a queued copy while `threads` threads run `load` until its flag is set."""
        stop = Flag()
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(load, stop) for _ in range(threads)]
            self.queued_ns(size_bytes, records=True)
            reading = self.queued_ns(size_bytes, records=True)
            stop.set()
            for each in running:
                each.result()
        return reading


def move_memory(stop: Flag) -> None:
    """Copy host memory until told to stop: what CPU experts and page faults do to the link."""
    source, target = np.ones(1 << 26, dtype=np.uint8), np.empty(1 << 26, dtype=np.uint8)
    while not stop.is_set():
        np.copyto(target, source)


def measure_link(pinned: torch.Tensor, repetitions: int, cpu_threads: int) -> Link:
    """All of it. `pinned` as in LinkBench."""
    bench = LinkBench(pinned)
    for size in SIZES_BYTES:
        bench.queued_ns(size, records=True)
    queued = {
        size: [bench.queued_ns(size, records=True, waiting=True) for _ in range(repetitions)] for size in SIZES_BYTES
    }
    fitted = [size for size in SIZES_BYTES if size >= FITTED_BYTES]
    rates, descriptors = [], []
    for repetition in range(repetitions):
        slope, intercept = line([(size, queued[size][repetition]) for size in fitted])
        rates.append(1e9 / slope)
        descriptors.append(intercept)
    expert = 9_437_184
    observed: dict[str, list[float]] = {}
    for size in SIZES_BYTES:
        observed[f"copy_{size}_bytes_alone_ns"] = [bench.alone_ns(size) for _ in range(repetitions)]
        observed[f"copy_{size}_bytes_queued_ns"] = [bench.queued_ns(size, records=False) for _ in range(repetitions)]
        observed[f"copy_{size}_bytes_queued_and_awaited_ns"] = queued[size]
    for pieces in (2, 3):
        observed[f"copy_{expert}_bytes_in_{pieces}_pieces_ns"] = [
            bench.queued_ns(expert, records=True, pieces=pieces) for _ in range(repetitions)
        ]
    observed["link_pageable_bytes_per_s"] = [expert * 1e9 / bench.pageable_ns(expert) for _ in range(repetitions)]
    observed["link_two_streams_bytes_per_s"] = [
        expert * 1e9 / bench.two_streams_ns(expert) for _ in range(repetitions)
    ]
    for threads in (1, cpu_threads):
        observed[f"link_under_{threads}_copying_threads_bytes_per_s"] = [
            expert * 1e9 / bench.under(move_memory, threads, expert) for _ in range(3)
        ]
    how = f"{repetitions} readings, median and 5th to 95th percentile"
    return Link(
        figures={
            "link_bytes_per_s": quantity(
                rates, f"slope of queued pinned copies of 4 to 352 MB, a kernel waiting for each; {how}"
            ),
            "copy_descriptor_ns": quantity(descriptors, f"intercept of the same line; {how}"),
        },
        observations={name: quantity(readings, how) for name, readings in observed.items()},
    )
