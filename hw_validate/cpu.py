"""CpuDevice: the whole harness where there is no GPU. Speaks `moesim.devices.base`, with the surface of `CudaGPU`.

Two threads are the two streams: each takes what the host enqueues in order. Copies are real copies of real experts
from one part of host memory into another, kernels are torch's on the processor, and a wait is one thread waiting for
the other; so whatever the loop forgets to order goes wrong here as it would on a GPU. Only the times say little: both
streams and the host share the processor.
"""

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Event as Signal
from threading import Thread
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hw_validate.cpu_dense import CpuDense, DenseGroup
from hw_validate.driver import HardwareError
from hw_validate.pairs import Pairs
from hw_validate.storage import HostExperts, Slots
from moesim.devices.base import Event, KernelClass, KernelRun, Prepared
from moesim.model import Kernel
from moesim.timeline import Timeline

__all__ = ["CpuDense", "CpuDevice", "CpuStream"]

Work = Callable[[], object]


class CpuStream:
    """Work in the order in which it was pushed, on a thread of its own, which ends when the stream is forgotten."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._failures: list[Exception] = []
        Thread(target=_work_off, args=(self._queue, self._failures), name=name, daemon=True).start()
        weakref.finalize(self, self._queue.put, None)

    def push(self, work: Work) -> None:
        """Enqueue."""
        self._queue.put(work)

    def synchronize(self) -> None:
        """Block until everything pushed has been done. Raises what went wrong with any of it."""
        done = Signal()
        self.push(done.set)
        done.wait()
        self.check()

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._failures:
            raise self._failures[0]


def _work_off(queue: SimpleQueue[Work | None], failures: list[Exception]) -> None:
    # Split over processors by load, a product would not sum in the same order each time; said once, the number stays.
    torch.set_num_threads(torch.get_num_threads())
    while (work := queue.get()) is not None:
        try:
            work()
        except Exception as error:  # later work, such as events that others wait for, must still be done
            failures.append(error)


class CpuDevice:
    """Slots for experts in host memory, the dense layers of one model; `pairs` yields each event's pairs in order."""

    def __init__(self, dense: CpuDense, host: HostExperts, slots: Slots, log_entries: int) -> None:
        self._dense, self._host, self._slots = dense, host, slots
        self.compute = CpuStream("compute")
        self.copies = self.prefetches = CpuStream("copies")
        self.cancelled_bytes = 0
        self.runs: list[KernelRun] = []
        self.blocked: list[tuple[int, int]] = []
        self.link_busy_ns = 0
        self.pairs: Iterator[Pairs] = iter(())
        self._pairs_now: Pairs = {}
        self.holder = [-1] * slots.count
        """Whom the host believes each slot to hold, in the order of issue."""
        self.copied: list[tuple[int, int, int]] = []
        """Every copy: (event, expert, slot)."""
        self.launched: list[tuple[int, int]] = []
        """Every launch of experts: (event, how many); what ran is in the log."""
        self.event = -1
        self.timeline: Timeline | None = None
        self._origin_ns = perf_counter_ns()
        self._compute_free_ns = 0
        self._awaited: list[Event] = []

        self.log = np.full((log_entries, 2), -1, dtype=np.int64)
        """Per execution: the tag before and behind it."""
        self._logged = 0
        self._rows = slots.bytes.view(slots.count, slots.stride_bytes)
        self._tags = self._rows.numpy()[:, host.expert_bytes : host.expert_bytes + 8].view(np.int64)[:, 0]

    # ---- what the replay loop calls

    def prepare(self, name: str, kind: KernelClass, layer: int, kernel: Kernel, launches: int) -> Prepared:
        if kind == "experts":
            return Prepared(name, kind, layer, kernel, 0, launches)
        ready = self._dense.groups.get((name, layer))
        if ready is None:
            raise HardwareError(f"{name} of layer {layer}: this engine was made without it")
        if kernel.tokens != ready.kernel.tokens:
            raise HardwareError(
                f"{name}: a step of {kernel.tokens} tokens; this engine was made for {ready.kernel.tokens}"
            )
        return ready

    def launch(self, stream: CpuStream, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        launched_ns = self.now_ns()
        run = KernelRun(prepared.kind, self._awaited)
        self._awaited = []
        self.runs.append(run)
        work = prepared.work if isinstance(prepared, DenseGroup) else self._experts_work(slots)
        timeline = self.timeline

        def timed() -> None:
            run.ready_ns = max(launched_ns, self._compute_free_ns)
            run.start_ns = self.now_ns()
            work()
            run.end_ns = self._compute_free_ns = self.now_ns()
            run.busy_ns = run.end_ns - run.start_ns
            if timeline is not None:
                timeline.add("compute", prepared.name, run.start_ns, run.end_ns, prepared.layer)

        stream.push(timed)
        if timeline is not None:
            timeline.add("host", f"launch {prepared.name}", launched_ns, self.now_ns(), prepared.layer)
        return run

    def copy(self, stream: CpuStream, expert: int, slot: int, size_bytes: int) -> int:
        issued_ns = self.now_ns()
        timeline = self.timeline

        def timed() -> None:
            begin = self.now_ns()
            self.bring(expert, slot)
            end = self.now_ns()
            self.link_busy_ns += end - begin
            if timeline is not None:
                for track in ("copies", "link"):
                    timeline.add(track, "copy", begin, end, expert=expert)

        stream.push(timed)
        self.holder[slot] = expert
        self.copied.append((self.event, expert, slot))
        return issued_ns

    def record(self, stream: CpuStream, issued_ns: int | None = None) -> Event:
        signal = Signal()
        event = Event(issued_ns=issued_ns, signal=signal)

        def complete() -> None:
            event.completed_ns = self.now_ns()
            signal.set()

        stream.push(complete)
        return event

    def wait(self, stream: CpuStream, event: Event) -> None:
        stream.push(event.signal.wait)
        if event.issued_ns is not None:
            self._awaited.append(event)

    def read_back(self, event: Event) -> Generator[Any, None, int]:
        begin = self.now_ns()
        event.signal.wait()
        end = self.now_ns()
        self.compute.check()
        self.blocked.append((begin, end))
        return end
        yield  # a generator, as the loop expects; there is nothing to hand over to

    def idle_until(self, instant_ns: int) -> int:
        while (now_ns := self.now_ns()) < instant_ns:
            pass
        return now_ns

    def decided(self) -> None:
        self.event += 1
        self._pairs_now = next(self.pairs)

    # ---- copies and experts, on the streams' threads

    def bring(self, expert: int, slot: int) -> None:
        """Copy an expert, tag and all, into a slot."""
        self._rows[slot].copy_(self._host.block(expert))

    def _experts_work(self, slots: Sequence[int]) -> Work:
        first, self._logged = self._logged, self._logged + len(slots)
        if self._logged > len(self.log):
            raise HardwareError("the log of executed experts is full")
        self.launched.append((self.event, len(slots)))
        served = [(slot, torch.tensor(self._pairs_now[self.holder[slot]], dtype=torch.long)) for slot in slots]

        def work() -> None:
            for entry, (slot, pairs) in enumerate(served, start=first):
                self.log[entry, 0] = self._tags[slot]
                self.execute(slot, pairs)
                self.log[entry, 1] = self._tags[slot]

        return work

    def execute(self, slot: int, pairs: torch.Tensor) -> None:
        """Run whoever is in a slot for its pairs; each pair has an output row of its own."""
        dense, model = self._dense, self._dense.model
        weights = self._rows[slot, : self._host.expert_bytes].view(dense.dtype)
        gate, up, down = weights.view(3, -1)
        wide = (model.expert_intermediate, model.hidden)
        x = dense.normed[pairs // model.top_k]
        activated = functional.silu(x @ gate.view(wide).T) * (x @ up.view(wide).T)
        dense.pair_out[pairs] = activated @ down.view(wide[::-1]).T

    def executed(self) -> list[tuple[int, int]]:
        """(before, behind) of every expert executed, in order: its tag as it was in the slot at either end."""
        pairs: list[tuple[int, int]] = list(map(tuple, self.log[: self._logged].tolist()))
        return pairs

    # ---- state

    def reset(self) -> None:
        """Nothing logged, nothing counted; streams must be idle."""
        self._dense.reset()
        self.log.fill(-1)
        self._logged = 0
        self.copied.clear()
        self.launched.clear()
        self.runs.clear()
        self.blocked.clear()
        self.event = -1

    def serve(self, pairs_of_slots: Mapping[int, Sequence[int]]) -> None:
        """Let slots hold experts of their own number that serve these pairs, for whoever launches without a loop."""
        for slot in pairs_of_slots:
            self.holder[slot] = slot
        self._pairs_now = dict(pairs_of_slots)

    def load_everything(self) -> None:
        """Every expert into the slot of its own number (the all-resident bound)."""
        for expert in range(self._host.experts):
            self.copy(self.copies, expert, expert, self._host.expert_bytes)
        self.synchronize()
        self.copied.clear()

    def start(self) -> None:
        """The clock starts now."""
        self.synchronize()
        self._origin_ns = perf_counter_ns()
        self._compute_free_ns = self.link_busy_ns = 0

    def now_ns(self) -> int:
        """Nanoseconds since the clock started."""
        return perf_counter_ns() - self._origin_ns

    def run(self, program: Generator[Any, None, None]) -> None:
        """Run a program of the host thread to its end. Raises what went wrong on a stream."""
        for _ in program:
            pass
        self.synchronize()

    def instrument(self, timeline: Timeline | None = None) -> None:
        """From here on put everything on `timeline`, if given. Instants cost nothing here and are always taken."""
        self.synchronize()
        self.timeline = timeline

    def synchronize(self) -> None:
        """Block until both streams are idle. Raises what went wrong on one of them."""
        self.compute.synchronize()
        self.copies.synchronize()
