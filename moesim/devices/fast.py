"""FastGPU: the virtual GPU in closed form, equal to SimulatedGPU to the nanosecond and far faster.

Where each engine serves one in-order stream, whatever an operation waits for was enqueued before it. So its instants
are known when it is enqueued, and there is no queue of simulated events:

    start = max(end of what stands before it on its stream, events that it waits for, host has enqueued it)
    end   = start + duration

What has no such form is left to SimulatedGPU (`moesim.device_choice`): two streams on one copy engine, a link whose
rate depends on what else moves memory, decisions that look at the clock.
"""

from collections import deque
from collections.abc import Generator, Sequence
from itertools import pairwise
from math import floor
from typing import Any

from moesim.devices.base import Event, KernelClass, KernelRun, Prepared
from moesim.engine import EngineSpec
from moesim.hardware import Hardware, nearest_ns
from moesim.model import Kernel


class FastStream:
    """An in-order queue of work, as the instant at which the last of it is done."""

    __slots__ = ("copied_ns", "copies_last", "done_ns", "kernels_done_ns", "waits")

    def __init__(self) -> None:
        self.done_ns = 0
        self.kernels_done_ns = 0
        self.copied_ns = -1
        """When the last copy ended."""
        self.copies_last = False
        """What was enqueued last is a copy, so the engine goes on without looking up."""
        self.waits: list[Event] = []
        """Copies that the next kernel waits for."""


class FastGPU:
    """A GPU, its host thread and its link in closed form. Implements `moesim.devices.base.Device`."""

    def __init__(self, hardware: Hardware, engine: EngineSpec) -> None:
        self.host_now_ns = 0
        self.runs: list[KernelRun] = []
        self.blocked: list[tuple[int, int]] = []
        self.kernel_sources: set[str] = set()
        """Where kernel times came from: `measured`, `roofline`, or both."""
        self.compute = FastStream()
        self.copies = self.prefetches = FastStream()
        self.disk = FastStream()
        self.cancelled_bytes = 0
        self._hardware = hardware
        self._mode = engine.mode
        self.captured = {
            "attention": engine.mode == "graph",
            "experts": engine.mode == "graph" and engine.experts_captured,
        }
        self._last_captured = self.captured["attention"]
        self._pieces = engine.copies_per_expert
        self._pieces_ns: dict[int, tuple[int, ...]] = {}
        self._synchronized_ns = 0
        """The instant that the host waited for last: what begins later has not happened yet."""
        self._link_busy_ns = 0
        self._disk_busy_ns = 0
        self._reads: deque[tuple[int, int]] = deque()
        """Begin and length of reads not yet counted as disk time."""
        self._bursts: deque[list[int]] = deque()
        """Begin and length of copies that the engine serves in one go; those not yet counted as link time."""

    def run(self, program: Generator[Any, None, None]) -> None:
        """Run a program of the host thread to its end."""
        for _ in program:
            raise AssertionError("every instant is known, so nothing waits")

    def prepare(self, name: str, kind: KernelClass, layer: int, kernel: Kernel, launches: int) -> Prepared:
        self.kernel_sources.add(self._hardware.kernel_source(kernel, self._mode))
        return Prepared(
            name, kind, layer, kernel, self._hardware.kernel_ns(kernel, self._mode, launches), launches
        )

    def decided(self) -> None:
        self.host_now_ns += self._hardware.loop_layer_ns

    def idle_until(self, instant_ns: int) -> int:
        self.host_now_ns = instant_ns
        return instant_ns

    def launch(self, stream: FastStream, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        kind, duration, launches = prepared.kind, prepared.duration_ns, prepared.launches
        captured = self.captured[kind]
        if captured:
            first = last = self.host_now_ns + self._hardware.enqueue_graph_ns
        else:
            enqueue = self._hardware.enqueue_kernel_ns
            first, last = self.host_now_ns + enqueue, self.host_now_ns + launches * enqueue
        self.host_now_ns = last
        free, start = stream.kernels_done_ns, stream.done_ns
        if start < first:
            start = first
        if captured and not self._last_captured:  # a stream that was idle has switched meanwhile
            start += max(0, self._hardware.switch_ns - (start - free))
        self._last_captured = captured
        # n equal kernels launched one after another: the last ends a kernel's length after its own launch at least.
        end = max(start + duration, last + duration // launches)
        stream.done_ns = stream.kernels_done_ns = end
        stream.copies_last = False
        waits: Sequence[Event] = ()
        if stream.waits:
            waits, stream.waits = stream.waits, []
        run = KernelRun(kind, waits, first if first > free else free, start, end, duration)
        self.runs.append(run)
        return run

    def copy(self, stream: FastStream, expert: int, slot: int, size_bytes: int) -> int:
        assert stream is self.copies, "one stream uses the copy engine"
        enqueue = self._hardware.enqueue_copy_ns
        first = self.host_now_ns + enqueue
        self.host_now_ns = last = self.host_now_ns + self._pieces * enqueue
        pieces = self._pieces_ns.get(size_bytes) or self.pieces_ns(size_bytes)
        before = stream.done_ns
        start = first if first > before else before
        idle = stream.copied_ns < start
        if last <= start:
            end = start + sum(pieces) + (self._hardware.copy_start_up_ns if idle else 0)
        else:
            # The host is still enqueueing pieces: each starts when it is there, after a start-up if it came too late.
            end, available = start, first
            for piece_ns in pieces:
                idle = idle or available > end
                end = max(end, available) + piece_ns + (self._hardware.copy_start_up_ns if idle else 0)
                idle, available = False, available + enqueue
        if stream.copies_last and first <= before:
            self._bursts[-1][1] += end - start
        else:
            self._bursts.append([start, end - start])
        stream.done_ns = stream.copied_ns = end
        stream.copies_last = True
        return first

    def pieces_ns(self, size_bytes: int) -> tuple[int, ...]:
        """How long each piece of a copy takes on the wire, rounded half up."""
        ends = [size_bytes * piece // self._pieces for piece in range(self._pieces + 1)]
        rate = self._hardware.link_bytes_per_s
        pieces = tuple(
            self._hardware.copy_descriptor_ns + floor((end - start) * 1_000_000_000 / rate + 0.5)
            for start, end in pairwise(ends)
        )
        self._pieces_ns[size_bytes] = pieces
        return pieces

    def read(self, expert: int, size_bytes: int) -> int:
        disk = self.disk
        start = max(disk.done_ns, self.host_now_ns)
        duration = nearest_ns(size_bytes * 1_000_000_000 / self._hardware.disk_bytes_per_s)
        if disk.copied_ns < start:
            duration += self._hardware.disk_latency_ns
        disk.done_ns = disk.copied_ns = start + duration
        self._reads.append((start, duration))
        return self.host_now_ns

    def record(self, stream: FastStream, issued_ns: int | None = None) -> Event:
        self.host_now_ns = now = self.host_now_ns + self._hardware.record_event_ns
        if stream.done_ns < now:
            stream.done_ns = now
        stream.copies_last = False
        return Event(stream.done_ns, issued_ns)

    def wait(self, stream: FastStream, event: Event) -> None:
        self.host_now_ns = now = self.host_now_ns + self._hardware.wait_event_ns
        arrived = max(stream.done_ns, now)
        completed = event.completed_ns
        assert completed is not None, "an event is recorded before anything waits for it"
        stream.done_ns = completed + self._hardware.event_latency_ns if completed > arrived else arrived
        stream.copies_last = False
        if event.issued_ns is not None:
            stream.waits.append(event)

    def read_back(self, event: Event) -> Generator[Any, None, int]:
        completed, begin = event.completed_ns, self.host_now_ns
        assert completed is not None, "an event is recorded before the host waits for it"
        self._synchronized_ns = max(self._synchronized_ns, completed)
        if completed > begin:
            self.blocked.append((begin, completed))
            begin = completed
        self.host_now_ns = begin + self._hardware.read_back_ns
        return self.host_now_ns
        yield  # a generator, as the protocol wants it, that has nothing to wait for

    @property
    def link_busy_ns(self) -> int:
        """How long the copy engine has been at work, a burst counted whole once the host has seen it begin."""
        bursts = self._bursts
        while bursts and bursts[0][0] <= self._synchronized_ns:
            self._link_busy_ns += bursts.popleft()[1]
        return self._link_busy_ns

    @property
    def disk_busy_ns(self) -> int:
        """How long the disk has been reading, a read counted whole once the host has seen it begin."""
        reads = self._reads
        while reads and reads[0][0] <= self._synchronized_ns:
            self._disk_busy_ns += reads.popleft()[1]
        return self._disk_busy_ns
