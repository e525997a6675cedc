"""Software queues above the FIFO copy engine: the only place where a demanded expert can overtake a guess.

The engine serves what was submitted to it in that order (measured, docs/design.md). So a thread of its own on the
host, beside the one that runs the loop, keeps what is still to be copied and submits little of it at a time:

- two queues, demand before guesses (or one, for comparison), each in order: a record or a wait in a queue holds back
  only what is behind it in the same queue;
- every expert in chunks, and never more than `submitted_ahead` of them at the engine: what is demanded overtakes at
  the end of a chunk, and never those that are submitted already;
- each submission costs this thread `enqueue_copy_ns`; handing a copy over costs the loop nothing but its record.

A copy into a slot for which an older one still waits in the other queue takes its place: nobody reads that any more,
and it must not write into the slot afterwards. What is at the engine already ends before, because the engine is FIFO.
"""

from collections import deque
from collections.abc import Collection, Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from moesim.devices.base import Event
from moesim.devices.simulated import RECORD, Operation, Queue, SimulatedGPU
from moesim.engine import EngineSpec
from moesim.hardware import Hardware, nearest_ns
from moesim.timeline import Timeline


@dataclass(slots=True, eq=False)
class Job:
    """One expert to copy. `number` counts jobs in the order in which the loop handed them over."""

    number: int
    first_ns: int
    expert: int
    slot: int
    chunks_bytes: tuple[int, ...]
    submitted: int = 0
    """Chunks at the engine, or being submitted."""
    urgent: bool = False
    """Begun as a guess, and needed now: goes before demand."""


@dataclass(slots=True, eq=False)
class Chunk:
    """A part of an expert; at the engine from `submitted_ns` on. `records` complete with it."""

    submitted_ns: int
    expert: int
    size_bytes: int
    here: bool = False
    records: tuple[Event, ...] = ()


class CopyQueue:
    """What the loop has handed over, in order."""

    def __init__(self, thread: "CopyThread") -> None:
        self.line: deque[Job | Operation] = deque()
        self.last: Chunk | None = None
        """The last chunk that left this queue."""
        self._thread = thread
        self._free_ns = 0
        """No sooner, since an event that was waited for tells so late."""
        self._held = False
        self._alarm_ns = -1

    def push(self, operation: "Job | Operation") -> None:
        """Hand over; wakes the thread if it had nothing to do."""
        self.line.append(operation)
        self._thread.rouse()

    def leave(self, chunk: Chunk) -> None:
        """A chunk leaves; records that are through when it has been submitted, and stand next, complete with it."""
        self.last = chunk
        line, through_ns = self.line, chunk.submitted_ns
        while line and line[0].first_ns <= through_ns >= self._free_ns:
            head = line[0]
            if isinstance(head, Job) or head.what != RECORD:
                return
            assert head.event is not None
            chunk.records += (head.event,)
            line.popleft()

    @property
    def awaits_look(self) -> bool:
        """Whether a record or a wait is at the head, which gets on without the engine."""
        return bool(self.line) and not isinstance(self.line[0], Job)

    def ready(self, now: int) -> Job | None:
        """The job at the head if it may start now, once the records and waits before it are through."""
        while self.line:
            head = self.line[0]
            if head.first_ns > now or self._free_ns > now:
                may_ns = max(head.first_ns, self._free_ns)
                if self._alarm_ns != may_ns:
                    self._alarm_ns = may_ns
                    self._thread.rouse_in(may_ns - now)
                return None
            if isinstance(head, Job):
                return head
            event = head.event
            assert event is not None
            if head.what == RECORD:
                if self.last is None or self.last.here:
                    complete(event, now)
                else:
                    self.last.records += (event,)
            elif event.completed_ns is None:
                if not self._held:
                    self._held = True
                    self._thread.rouse_with(event)
                return None
            elif self._held:
                self._held = False
                self._free_ns = event.completed_ns + self._thread.event_latency_ns
            self.line.popleft()
        return None


class CopyThread:
    """The host thread that submits chunks, and the engine that it alone feeds.

    Neither is a process, nor the engine a stream: where chunks follow one another each costs one event of SimPy's, its
    arrival, and what it was submitted for is known when the thread begins to. A process each took four events.
    """

    def __init__(self, device: SimulatedGPU, queues: int, submitted_ahead: int) -> None:
        self.queues = [CopyQueue(self) for _ in range(queues)]
        self.event_latency_ns = device.event_latency_ns
        self.cancelled_bytes = 0
        self._device = device
        self._environment = device.environment
        self._most = submitted_ahead
        self._into: dict[int, list[tuple[CopyQueue, Job]]] = {}
        """By slot: whoever is to be copied there and still waits, wholly or for chunks."""
        self._at_engine: deque[Chunk] = deque()
        """Or being submitted, the last of them."""
        self._free_ns = 0
        """When the thread has submitted what it began to submit."""
        self._will_look = False
        self._wire_ns: dict[int, int] = {}
        """By bytes of a chunk."""

    def hand_over(self, queue: CopyQueue, job: Job) -> None:
        """Take a job from the loop."""
        self._into.setdefault(job.slot, []).append((queue, job))
        queue.push(job)

    def rouse(self, _: Any = None) -> None:
        """Something may have changed: look, once the thread is free and all else in that instant has happened."""
        if not self._will_look:
            self._will_look = True
            environment = self._environment
            environment.timeout(max(0, self._free_ns - int(environment.now))).callbacks.append(self._look)

    def _rouse_now(self, _: Any = None) -> None:
        """The same without an event of its own, where nothing else happens in this instant."""
        now = self._environment.now
        if self._will_look or self._free_ns > now or self._environment.peek() <= now:
            self.rouse()
        else:
            self._look()

    def rouse_in(self, delay_ns: int) -> None:
        """Look again in so long."""
        self._environment.timeout(delay_ns).callbacks.append(self._rouse_now)

    def rouse_with(self, event: Event) -> None:
        """Look again when an event completes."""
        if event.signal is None:
            event.signal = self._environment.event()
        event.signal.callbacks.append(self.rouse)

    def drop_unstarted(self, experts: Collection[int]) -> list[int]:
        """Take guesses that have not begun out of their queue; returns those that were."""
        guesses = self.queues[-1]
        found = [job for job in guesses.line if isinstance(job, Job) and not job.submitted and job.expert in experts]
        for job in found:
            self._cancel(guesses, job)
        if self._free_ns > self._environment.now:  # what stood behind them is looked at as soon as the thread is free
            self.rouse()
        return [job.expert for job in found]

    def hasten(self, experts: Collection[int]) -> None:
        """A guess that has begun and is needed now is brought to its end before anything else begins."""
        head = self.queues[-1].line[0] if self.queues[-1].line else None
        if isinstance(head, Job) and head.submitted and head.expert in experts:
            head.urgent = True

    def _look(self, _: Any = None) -> None:
        """Submit the next chunk, if one may be."""
        self._will_look = False
        now = int(self._environment.now)
        if self._free_ns > now:
            self.rouse()
            return
        full = len(self._at_engine) >= self._most
        turn = job = None
        for queue in self.queues:  # all of them, so that records at any head complete
            line = queue.line
            if not line or (full and type(line[0]) is Job):
                continue
            head = queue.ready(now)
            if head is not None and (job is None or head.urgent):
                turn, job = queue, head
        if full or turn is None or job is None:
            return
        if not job.submitted:
            self._supersede(job)
        size_bytes = job.chunks_bytes[job.submitted]
        job.submitted += 1
        if job.submitted == len(job.chunks_bytes):
            turn.line.popleft()
            self._into[job.slot].remove((turn, job))
        self._free_ns = now + self._device.hardware.enqueue_copy_ns
        chunk = Chunk(self._free_ns, job.expert, size_bytes)
        turn.leave(chunk)
        self._at_engine.append(chunk)
        if len(self._at_engine) == 1:
            self._environment.timeout(self._free_ns - now).callbacks.append(self._begin_and_look)
        elif len(self._at_engine) < self._most or any(queue.awaits_look for queue in self.queues):
            self.rouse()

    def _begin_and_look(self, _: Any) -> None:
        self._begin()
        self._look()

    def _begin(self) -> None:
        """The engine turns to its first chunk; it starts up anew if it had nothing to do meanwhile."""
        device, now, chunk = self._device, int(self._environment.now), self._at_engine[0]
        hardware, engine = device.hardware, device.engine
        duration_ns = self._wire_ns.get(chunk.size_bytes, 0)
        if not duration_ns:
            duration_ns = hardware.copy_descriptor_ns + nearest_ns(
                chunk.size_bytes * 1_000_000_000 / hardware.link_bytes_per_s
            )
            self._wire_ns[chunk.size_bytes] = duration_ns
        if engine.last_end_ns < now:
            duration_ns += hardware.copy_start_up_ns
        engine.last_end_ns = now + duration_ns
        engine.busy_ns += duration_ns
        device.draw_copy(chunk.expert, "copies", now, now + duration_ns)
        self._environment.timeout(duration_ns).callbacks.append(self._arrived)

    def _arrived(self, _: Any) -> None:
        """The engine has copied its first chunk."""
        chunk = self._at_engine.popleft()
        chunk.here = True
        for record in chunk.records:
            complete(record, int(self._environment.now))
        if self._at_engine:
            delay_ns = self._at_engine[0].submitted_ns - int(self._environment.now)
            if delay_ns <= 0:
                self._begin()
            else:
                self._environment.timeout(delay_ns).callbacks.append(self._begin_and_look)
        self._rouse_now()

    def _supersede(self, job: Job) -> None:
        into = self._into[job.slot]
        if len(into) > 1:
            for queue, older in into[:]:
                if older.number < job.number:
                    self._cancel(queue, older)

    def _cancel(self, queue: CopyQueue, job: Job) -> None:
        queue.line.remove(job)
        self._into[job.slot].remove((queue, job))
        self.cancelled_bytes += sum(job.chunks_bytes[job.submitted :])


def complete(event: Event, now: int) -> None:
    """An event happens."""
    event.completed_ns = now
    if event.signal is not None:
        event.signal.succeed()


class SimulatedGPUWithCopyThread(SimulatedGPU):
    """Implements `moesim.devices.base.DeviceWithCopyQueues`."""

    def __init__(self, hardware: Hardware, engine: EngineSpec, timeline: Timeline | None = None) -> None:
        super().__init__(hardware, engine, timeline)
        spec = engine.copy_thread
        assert spec is not None, "an engine without a copy thread is a plain SimulatedGPU"
        self._thread = CopyThread(self, spec.queues, spec.submitted_ahead)
        self.copies, self.prefetches = self._thread.queues[0], self._thread.queues[-1]
        self._jobs = 0
        self._chunks_bytes: dict[int, tuple[int, ...]] = {}

    @property
    def cancelled_bytes(self) -> int:
        """Of copies that were handed over and never made, or not to their end."""
        return self._thread.cancelled_bytes

    def copy(self, stream: Queue, expert: int, slot: int, size_bytes: int) -> int:
        """Hand over the copy of one expert; returns when."""
        assert isinstance(stream, CopyQueue)
        self._jobs += 1
        chunks = self._chunks_bytes.get(size_bytes)
        if chunks is None:
            ends = [size_bytes * piece // self._pieces for piece in range(self._pieces + 1)]
            chunks = self._chunks_bytes[size_bytes] = tuple(end - start for start, end in pairwise(ends))
        self._thread.hand_over(stream, Job(self._jobs, self.host_now_ns, expert, slot, chunks))
        return self.host_now_ns

    def drop_unstarted(self, experts: Collection[int]) -> Generator[Any, None, list[int]]:
        """Let the simulation come up with the host, which looks into the queue: the answer depends on the clock."""
        behind_ns = self.host_now_ns - int(self.environment.now)
        if behind_ns > 0:
            yield self.environment.timeout(behind_ns)
        return self._thread.drop_unstarted(experts)

    def hasten(self, experts: Collection[int]) -> None:
        """Bring a guess of these that has begun to its end before anything else begins."""
        self._thread.hasten(experts)
