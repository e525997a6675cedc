"""A simulated GPU beside a CPU that executes experts: one more stream, and host memory that all share.

The CPU is an in-order stream: all cores work on one expert, then on the next. What it needs of the GPU (a token's
activations) and what it gives back (one sum per token) travels over the link; up to 4 KiB passes by the copy engine
(measured, docs/design.md), more queues on it like any copy.
"""

from collections.abc import Generator
from typing import Any

from moesim.devices.host_memory import HostMemory
from moesim.devices.simulated import COPY, WORK, Operation, SimulatedGPU, SimulatedStream
from moesim.engine import EngineSpec
from moesim.hardware import Hardware, nearest_ns
from moesim.model import Kernel
from moesim.timeline import Timeline

SMALL_COPY_BYTES = 4096
"""Copies of at most so many bytes pass by the copy engine."""


class SimulatedGPUAndCPU(SimulatedGPU):
    """Implements `moesim.devices.base.DeviceWithCpu`."""

    host_memory: HostMemory

    def __init__(self, hardware: Hardware, engine: EngineSpec, timeline: Timeline | None = None) -> None:
        super().__init__(hardware, engine, timeline)
        self.host_memory = HostMemory(self.environment, hardware.host_bytes_per_s)
        self.cpu = SimulatedStream(self, "cpu")
        self.results = SimulatedStream(self, "results")
        self.cpu_runs: list[tuple[int, int]] = []

    def bring_activations(self, size_bytes: int) -> None:
        """Enqueue the way of a layer's input to the CPU; a small one has come with the ids that were read back."""
        if size_bytes > SMALL_COPY_BYTES:
            self._work(self.cpu, self._activations(size_bytes))

    def execute(self, expert: int, kernel: Kernel) -> None:
        """Enqueue one expert on the CPU. What handing it over takes is part of its time."""
        self._work(self.cpu, self._expert(expert, kernel))

    def return_result(self, size_bytes: int) -> int:
        """Enqueue the copy of a layer's result to the GPU; returns when the host had enqueued it."""
        hardware = self.hardware
        self.host_now_ns += hardware.enqueue_copy_ns
        if size_bytes <= SMALL_COPY_BYTES:
            self._work(self.results, self._small_copy())
        else:
            pieces = (hardware.copy_descriptor_ns + self._wire_ns(size_bytes),)
            self.results.push(Operation(COPY, self.host_now_ns, self.host_now_ns, pieces_ns=pieces))
        return self.host_now_ns

    def _wire_ns(self, size_bytes: int) -> int:
        return nearest_ns(size_bytes * 1e9 / self.hardware.link_bytes_per_s)

    def _work(self, stream: SimulatedStream, work: Generator[Any, None, None]) -> None:
        stream.push(Operation(WORK, self.host_now_ns, self.host_now_ns, work=work))

    def _activations(self, size_bytes: int) -> Generator[Any, None, None]:
        # Nothing else goes from the GPU to the host, and that direction has an engine of its own.
        yield from self.host_memory.flow(self._wire_ns(size_bytes), self.hardware.link_bytes_per_s)

    def _small_copy(self) -> Generator[Any, None, None]:
        yield self.environment.timeout(self.hardware.copy_start_up_ns + self.hardware.copy_descriptor_ns)

    def _expert(self, expert: int, kernel: Kernel) -> Generator[Any, None, None]:
        alone_ns = self.hardware.cpu_expert_ns(kernel)
        start = int(self.environment.now)
        yield from self.host_memory.flow(alone_ns, kernel.hbm_bytes * 1e9 / max(1, alone_ns))
        end = int(self.environment.now)
        self.cpu_runs.append((start, end))
        if self._timeline is not None:
            self._timeline.add("cpu", "expert", start, end, expert=expert)
