"""SimulatedGPU: the virtual GPU in SimPy, the reference that every other device is held against.

Streams are processes, the link is a copy engine that they share, and the clock is integer nanoseconds.

The host thread keeps its own clock, which runs ahead of the simulation between two synchronizations, exactly as a
CUDA host runs ahead of its GPU: it cannot see anything before it synchronizes, so nothing it does in between needs
an event of its own. Every operation carries the instant at which the host had enqueued it, and no stream starts
one earlier.

The copy engine (measured, see docs/design.md): it stays on the stream it serves until nothing there is ready, then
takes the stream that has waited longest. A copy costs a start-up if the engine was idle, a little per descriptor,
and its bytes at the link's rate.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from typing import Any, Protocol

import simpy

from moesim.devices.base import Event, KernelClass, KernelRun, Prepared
from moesim.devices.host_memory import HostMemory
from moesim.engine import EngineSpec
from moesim.hardware import Hardware, nearest_ns
from moesim.model import Kernel
from moesim.timeline import Timeline

LAUNCH, COPY, RECORD, WAIT, WORK = range(5)


@dataclass(slots=True)
class Operation:
    """Something enqueued: `first_ns` when the host had enqueued its first part, `last_ns` its last."""

    what: int
    first_ns: int
    last_ns: int
    event: Event | None = None
    run: KernelRun | None = None
    prepared: Prepared | None = None
    expert: int = -1
    pieces_ns: tuple[int, ...] = ()
    """On the wire, without the start-up: one per piece of a copy."""
    work: Generator[Any, None, None] | None = None
    """Of a WORK: whatever it waits by, and then it is done."""


class Queue(Protocol):
    """Whatever takes operations in order."""

    def push(self, operation: Operation) -> None: ...


class CopyEngine:
    """The host-to-device engine: one copy at a time, in bursts of one stream."""

    def __init__(self) -> None:
        self.owner: SimulatedStream | None = None
        self.waiting: deque[tuple[SimulatedStream, Any]] = deque()
        self.last_end_ns = -1
        self.busy_ns = 0

    def release(self) -> None:
        """Nothing is ready on the owner's stream: serve whoever has waited longest."""
        if self.waiting:
            self.owner, turn = self.waiting.popleft()
            turn.succeed()
        else:
            self.owner = None


class SimulatedStream:
    """An in-order queue of operations, run by one SimPy process."""

    def __init__(self, device: "SimulatedGPU", name: str) -> None:
        self.name = name
        self._device = device
        self._environment = device.environment
        self._queue: deque[Operation] = deque()
        self._wake: Any = None
        self._waited: list[Event] = []
        self._free_ns = 0
        self._event_latency_ns = device.event_latency_ns
        device.environment.process(self._run())

    def push(self, operation: Operation) -> None:
        """Enqueue; wakes the stream if it had run dry."""
        self._queue.append(operation)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def _run(self) -> Generator[Any, None, None]:
        environment, queue, engine = self._environment, self._queue, self._device.engine
        timeout, memory = environment.timeout, self._device.host_memory
        while True:
            if not queue:
                if engine.owner is self:
                    engine.release()
                self._wake = environment.event()
                yield self._wake
                continue
            operation = queue.popleft()
            now = int(environment.now)
            if operation.first_ns > now:
                if engine.owner is self:
                    engine.release()
                yield timeout(operation.first_ns - now)
                now = operation.first_ns
            what = operation.what
            if what == COPY:
                if engine.owner is not self:
                    if engine.owner is not None:
                        turn = environment.event()
                        engine.waiting.append((self, turn))
                        yield turn
                        now = int(environment.now)
                    engine.owner = self
                if memory is None:
                    yield timeout(self._burst(operation, now) - now)
                else:
                    yield from self._through_memory(memory, operation)
            elif what == LAUNCH:
                if engine.owner is self:
                    engine.release()
                yield timeout(self._start(operation, now))
            elif what == RECORD:
                event = operation.event
                assert event is not None
                event.completed_ns = now
                if event.signal is not None:
                    event.signal.succeed()
            elif what == WORK:
                if engine.owner is self:
                    engine.release()
                assert operation.work is not None
                yield from operation.work
            else:
                event = operation.event
                assert event is not None
                if event.issued_ns is not None:
                    self._waited.append(event)
                if event.completed_ns is None:
                    if engine.owner is self:
                        engine.release()
                    if event.signal is None:
                        event.signal = environment.event()
                    yield event.signal
                    # Not where the event completes in the very nanosecond in which the stream turns to it.
                    if self._event_latency_ns and event.completed_ns != now:
                        yield timeout(self._event_latency_ns)

    def _burst(self, operation: Operation, start: int) -> int:
        """Serve a copy and those that queue ready behind it, which the engine would not leave; returns their end."""
        queue, device = self._queue, self._device
        engine, begin = device.engine, start
        idle = engine.last_end_ns < start
        while True:
            end = device.copy_end_ns(operation, start, idle)
            device.draw_copy(operation.expert, self.name, start, end)
            if not queue or queue[0].what != COPY or queue[0].first_ns > end:
                break
            operation, start, idle = queue.popleft(), end, False
        engine.last_end_ns = end
        engine.busy_ns += end - begin
        return end

    def _through_memory(self, memory: HostMemory, operation: Operation) -> Generator[Any, None, None]:
        """Serve one copy whose bytes come from shared memory; as long as `copy_end_ns` where nothing else runs."""
        environment, device = self._environment, self._device
        engine, hardware = device.engine, device.hardware
        begin = now = int(environment.now)
        idle, available = engine.last_end_ns < begin, operation.first_ns
        for piece_ns in operation.pieces_ns:
            if available > now:
                idle = True
                yield environment.timeout(available - now)
            yield environment.timeout(hardware.copy_descriptor_ns + (hardware.copy_start_up_ns if idle else 0))
            yield from memory.flow(piece_ns - hardware.copy_descriptor_ns, hardware.link_bytes_per_s)
            idle, available, now = False, available + hardware.enqueue_copy_ns, int(environment.now)
        engine.last_end_ns = now
        engine.busy_ns += now - begin
        device.draw_copy(operation.expert, self.name, begin, now)

    def _start(self, operation: Operation, now: int) -> int:
        """Fill in a kernel group's instants; returns how long it holds the stream."""
        run, prepared, arrived = operation.run, operation.prepared, now
        assert run is not None
        assert prepared is not None
        if self._waited:
            run.waits, self._waited = self._waited, []
        duration = prepared.duration_ns
        now += self._device.switched_ns(prepared.kind, now - self._free_ns)
        # n equal kernels launched one after another: the last ends a kernel's length after its own launch at least.
        end = max(now + duration, operation.last_ns + duration // prepared.launches)
        run.ready_ns = max(operation.first_ns, self._free_ns)
        run.start_ns, run.end_ns, run.busy_ns = now, end, duration
        self._free_ns = end
        self._device.draw_kernel(prepared, self.name, now, end)
        return end - arrived


class SimulatedGPU:
    """A GPU, its host thread and its link in one SimPy environment. Implements `moesim.devices.base.Device`."""

    host_memory: HostMemory | None = None
    """What copies share with experts on the CPU, where a machine executes some (`simulated_cpu.py`)."""

    def __init__(self, hardware: Hardware, engine: EngineSpec, timeline: Timeline | None = None) -> None:
        self.environment = simpy.Environment(initial_time=0)
        self.engine = CopyEngine()
        self.host_now_ns = 0
        self.event_latency_ns = hardware.event_latency_ns
        self.runs: list[KernelRun] = []
        self.blocked: list[tuple[int, int]] = []
        self.kernel_sources: set[str] = set()
        """Where kernel times came from: `measured`, `roofline`, or both."""
        self.hardware = hardware
        self._captured = {
            "attention": engine.mode == "graph",
            "experts": engine.mode == "graph" and engine.experts_captured,
        }
        self._last_kind: KernelClass = "attention"
        self._mode = engine.mode
        self._timeline = timeline
        self._pieces = engine.copies_per_expert
        self._pieces_ns: dict[int, tuple[int, ...]] = {}
        self.compute = SimulatedStream(self, "compute")
        self.copies: Queue = SimulatedStream(self, "copies")
        self.prefetches: Queue = self.copies
        self.disk: Queue = SimulatedStream(self, "disk")
        self.disk_busy_ns = 0
        self._disk_end_ns = -1

    def run(self, program: Generator[Any, None, None]) -> None:
        """Run a program of the host thread to its end."""
        self.environment.run(self.environment.process(program))

    def prepare(self, name: str, kind: KernelClass, layer: int, kernel: Kernel, launches: int) -> Prepared:
        self.kernel_sources.add(self.hardware.kernel_source(kernel, self._mode))
        return Prepared(
            name, kind, layer, kernel, self.hardware.kernel_ns(kernel, self._mode, launches), launches
        )

    def decided(self) -> None:
        self.host_now_ns += self.hardware.loop_layer_ns

    def idle_until(self, instant_ns: int) -> int:
        self.host_now_ns = instant_ns
        return instant_ns

    def launch(self, stream: SimulatedStream, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        hardware = self.hardware
        begin = self.host_now_ns
        if self._captured[prepared.kind]:
            self.host_now_ns = last = first = begin + hardware.enqueue_graph_ns
        else:
            first = begin + hardware.enqueue_kernel_ns
            self.host_now_ns = last = begin + prepared.launches * hardware.enqueue_kernel_ns
        run = KernelRun(prepared.kind)
        self.runs.append(run)
        stream.push(Operation(LAUNCH, first, last, run=run, prepared=prepared))
        if self._timeline is not None:
            self._timeline.add("host", f"launch {prepared.name}", begin, last, prepared.layer)
        return run

    def copy(self, stream: Queue, expert: int, slot: int, size_bytes: int) -> int:
        begin = self.host_now_ns
        first = begin + self.hardware.enqueue_copy_ns
        self.host_now_ns = last = begin + self._pieces * self.hardware.enqueue_copy_ns
        pieces = self._pieces_ns.get(size_bytes) or self._cut(size_bytes)
        stream.push(Operation(COPY, first, last, expert=expert, pieces_ns=pieces))
        if self._timeline is not None:
            self._timeline.add("host", "enqueue copy", begin, last, expert=expert)
        return first

    def _cut(self, size_bytes: int) -> tuple[int, ...]:
        """How long each piece of a copy takes on the wire, rounded half up."""
        ends = [size_bytes * piece // self._pieces for piece in range(self._pieces + 1)]
        rate = self.hardware.link_bytes_per_s
        pieces = tuple(
            self.hardware.copy_descriptor_ns + floor((end - start) * 1_000_000_000 / rate + 0.5)
            for start, end in pairwise(ends)
        )
        self._pieces_ns[size_bytes] = pieces
        return pieces

    def read(self, expert: int, size_bytes: int) -> int:
        work = self._read(expert, nearest_ns(size_bytes * 1_000_000_000 / self.hardware.disk_bytes_per_s))
        self.disk.push(Operation(WORK, self.host_now_ns, self.host_now_ns, work=work))
        return self.host_now_ns

    def _read(self, expert: int, duration_ns: int) -> Generator[Any, None, None]:
        """Reads that queue behind one another hide each other's latency, as copies do their start-up."""
        start = int(self.environment.now)
        if self._disk_end_ns < start:
            duration_ns += self.hardware.disk_latency_ns
        self.disk_busy_ns += duration_ns
        self._disk_end_ns = start + duration_ns
        if self._timeline is not None:
            self._timeline.add("disk", "read", start, start + duration_ns, expert=expert)
        yield self.environment.timeout(duration_ns)

    def record(self, stream: Queue, issued_ns: int | None = None) -> Event:
        self.host_now_ns += self.hardware.record_event_ns
        event = Event(issued_ns=issued_ns)
        stream.push(Operation(RECORD, self.host_now_ns, self.host_now_ns, event=event))
        return event

    def wait(self, stream: Queue, event: Event) -> None:
        self.host_now_ns += self.hardware.wait_event_ns
        stream.push(Operation(WAIT, self.host_now_ns, self.host_now_ns, event=event))

    def read_back(self, event: Event) -> Generator[Any, None, int]:
        if event.completed_ns is None:
            if event.signal is None:
                event.signal = self.environment.event()
            yield event.signal
        completed, begin = event.completed_ns, self.host_now_ns
        assert completed is not None
        if completed > begin:
            self.blocked.append((begin, completed))
            begin = completed
        self.host_now_ns = begin + self.hardware.read_back_ns
        if self._timeline is not None:
            self._timeline.add("host", "read back", begin, self.host_now_ns)
        return self.host_now_ns

    def switched_ns(self, kind: KernelClass, idle_ns: int) -> int:
        """How much later a group starts since the stream changes between captured and single launches.

        A stream that was idle has changed meanwhile.
        """
        changes = self._captured[kind] and not self._captured[self._last_kind]
        self._last_kind = kind
        return max(0, self.hardware.switch_ns - idle_ns) if changes else 0

    @property
    def cancelled_bytes(self) -> int:
        """Nothing is taken back from a stream."""
        return 0

    @property
    def link_busy_ns(self) -> int:
        """How long the copy engine has been at work."""
        return self.engine.busy_ns

    def copy_end_ns(self, operation: Operation, start: int, idle: bool) -> int:
        """When a copy that starts now ends, on an engine that was idle or comes from another copy."""
        if operation.last_ns <= start:
            return start + sum(operation.pieces_ns) + (self.hardware.copy_start_up_ns if idle else 0)
        # The host is still enqueueing pieces: each starts when it is there, after a start-up if it came too late.
        end, available = start, operation.first_ns
        for piece_ns in operation.pieces_ns:
            idle = idle or available > end
            end = max(end, available) + piece_ns + (self.hardware.copy_start_up_ns if idle else 0)
            idle, available = False, available + self.hardware.enqueue_copy_ns
        return end

    def draw_copy(self, expert: int, track: str, start: int, end: int) -> None:
        """Put a copy on the timeline, if one is kept."""
        if self._timeline is not None:
            self._timeline.add(track, "copy", start, end, expert=expert)
            self._timeline.add("link", "copy", start, end, expert=expert)

    def draw_kernel(self, prepared: Prepared, track: str, start: int, end: int) -> None:
        """Put a kernel group on the timeline, if one is kept."""
        if self._timeline is not None:
            self._timeline.add(track, prepared.name, start, end, prepared.layer)
