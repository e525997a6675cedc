"""CudaGPU: the replay loop's device on a real GPU, through torch.cuda and the driver. Speaks `moesim.devices.base`.

Two streams, events between them, real copies of real experts, real kernels. What the host does for each operation is
kept as small as Python allows, since it is a part of what is measured: copies and expert kernels go straight to the
driver, dense groups are captured graphs, ids come back through pinned memory that the router's kernel writes and the
host polls.

Timestamps cost time, so a run takes them only on the steps that it is told to (`instrument`); the others are bare.
"""

import ctypes
from collections.abc import Generator, Iterator, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import torch

from hw_validate.dense import MAX_PAIRS, Captured, DenseLayers
from hw_validate.driver import HardwareError, host_to_device
from hw_validate.pairs import Pairs
from hw_validate.storage import HostExperts, Slots
from moesim.devices.base import Event, KernelClass, KernelRun, Prepared
from moesim.model import Kernel
from moesim.timeline import Timeline

EVENTS = 32_768
"""CUDA events in the ring: more than one step of any model records, so that none is used again while it is awaited."""

UNTIMED = KernelRun("experts")
"""Stands for every launch of which nobody keeps the times."""


class CudaGPU:
    """One GPU with slots for experts, and the dense layers of one model. `pairs` yields each event's pairs in order."""

    def __init__(self, dense: DenseLayers, host: HostExperts, slots: Slots, log_entries: int) -> None:
        self._dense, self._host, self._slots = dense, host, slots
        self.compute = dense.stream
        self.copies = self.prefetches = torch.cuda.Stream()
        self.cancelled_bytes = 0
        self._compute = self.compute.cuda_stream
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
        self._origin_ns = perf_counter_ns()
        self._memcpy = host_to_device()
        self._stride = host.stride_bytes
        self._host_address, self._slots_address = host.address, slots.address

        self._flag = ctypes.cast(dense.host_flag.data_ptr(), ctypes.POINTER(ctypes.c_int32))
        self._told = 0
        self._last_name = ""

        # An event that keeps the time costs host and engine more than one that only orders.
        self._ring = [torch.cuda.Event() for _ in range(EVENTS)]
        self._next_event = 0

        # Per execution: the tag before and behind it, begin and end by the GPU's clock.
        self.log = torch.full((4 * log_entries,), -1, dtype=torch.int64, device="cuda")
        self._log_end = self.log.data_ptr() + self.log.numel() * 8
        self._make_expert_kernels()

        self._instrumented = False
        self._zero: torch.cuda.Event | None = None
        self._zero_ns = 0
        self._gpu_origin_ns = 0
        self._gpu_clock = torch.zeros(1, dtype=torch.int64).pin_memory()
        self._noted: list[tuple[KernelRun, Prepared, int]] = []
        self._first_launch = 0
        self._awaited: list[Event] = []
        self._arriving: list[tuple[Event, torch.cuda.Event, list[int]]] = []
        self._copied_since: list[int] = []
        self._link_free_ns = 0
        self.timeline: Timeline | None = None

    # ---- what the replay loop calls

    def prepare(self, name: str, kind: KernelClass, layer: int, kernel: Kernel, launches: int) -> Prepared:
        if kind == "experts":
            return Prepared(name, kind, layer, kernel, 0, launches)
        ready = self._dense.groups.get((name, layer))
        if ready is None:
            raise HardwareError(f"{name} of layer {layer}: this engine was captured without it")
        if kernel.tokens != ready.kernel.tokens:
            raise HardwareError(
                f"{name}: a step of {kernel.tokens} tokens; this engine was captured for {ready.kernel.tokens}"
            )
        return ready

    def launch(self, stream: torch.cuda.Stream, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        begin = self.now_ns() if self._instrumented else 0
        if isinstance(prepared, Captured):
            prepared.graph.replay()
            if prepared.tells:
                self._told += 1
                self._last_name = prepared.name
        else:
            self._launch_experts(slots)
        return self._note_launch(prepared, begin) if self._instrumented else UNTIMED

    def copy(self, stream: torch.cuda.Stream, expert: int, slot: int, size_bytes: int) -> int:
        begin = perf_counter_ns()
        stride = self._stride
        status = self._memcpy(
            self._slots_address + slot * stride, self._host_address + expert * stride, stride, stream.cuda_stream
        )
        if status:
            raise HardwareError(f"copying expert {expert} into slot {slot}: CUDA error {status}")
        self.holder[slot] = expert
        self.copied.append((self.event, expert, slot))
        if self._instrumented:
            self._copied_since.append(expert)
        return begin - self._origin_ns

    def record(self, stream: torch.cuda.Stream, issued_ns: int | None = None) -> Event:
        at = self._next_event
        self._next_event = (at + 1) % EVENTS
        timed = self._instrumented and issued_ns is not None
        cuda_event = torch.cuda.Event(enable_timing=True) if timed else self._ring[at]
        cuda_event.record(stream)
        event = Event(issued_ns=issued_ns, signal=(cuda_event, self._told))
        if timed:
            self._arriving.append((event, cuda_event, self._copied_since))
            self._copied_since = []
        return event

    def wait(self, stream: torch.cuda.Stream, event: Event) -> None:
        stream.wait_event(event.signal[0])
        if self._instrumented and event.issued_ns is not None:
            self._awaited.append(event)

    def read_back(self, event: Event) -> Generator[Any, None, int]:
        flag, told = self._flag, event.signal[1]
        begin = perf_counter_ns()
        while flag[0] < told:
            pass
        end = perf_counter_ns()
        origin = self._origin_ns
        self.blocked.append((begin - origin, end - origin))
        if self._instrumented and self._last_name == "head":
            self._last_name = ""
            self._resolve(end - origin)
            self._pause(perf_counter_ns() - end)
        return end - origin
        yield  # a generator, as the loop expects; a real machine has nothing to hand over to

    def idle_until(self, instant_ns: int) -> int:
        while (now_ns := self.now_ns()) < instant_ns:
            pass
        return now_ns

    def decided(self) -> None:
        self.event += 1
        self._pairs_now = next(self.pairs)

    # ---- experts

    def _make_expert_kernels(self) -> None:
        dense, model = self._dense, self._dense.model

        class Work(ctypes.Structure):
            """As in kernels/decode.cu."""

            _fields_ = (
                ("experts", ctypes.c_int),
                ("first_pair", ctypes.c_int * (model.experts + 1)),
                ("slot", ctypes.c_int * model.experts),
                ("pair", ctypes.c_short * MAX_PAIRS),
            )

        self._work = work = Work()
        self._log_at = ctypes.c_uint64(self.log.data_ptr())

        def arguments(*tensors: torch.Tensor) -> list[Any]:
            pointers = [ctypes.c_uint64(each.data_ptr()) for each in tensors]
            return [work, ctypes.c_uint64(self._slots_address), ctypes.c_uint64(self._stride), *pointers, self._log_at]

        warps = 4
        self._gate_up = dense.module.launch("gate_up", arguments(dense.normed, dense.pair_hidden), 32 * warps)
        self._down = dense.module.launch("down", arguments(dense.pair_hidden, dense.pair_out), 32 * warps)
        self._gate_up_blocks = -(-model.expert_intermediate // warps)
        self._down_blocks = -(-model.hidden // warps)

    def _launch_experts(self, slots: Sequence[int]) -> None:
        work, holder, pairs = self._work, self.holder, self._pairs_now
        count = len(slots)
        work.experts = count
        work.slot[:count] = slots
        first = [0]
        served: list[int] = []
        for slot in slots:
            served += pairs[holder[slot]]
            first.append(len(served))
        work.first_pair[: count + 1] = first
        work.pair[: len(served)] = served
        if self._log_at.value + 32 * count > self._log_end:
            raise HardwareError("the log of executed experts is full")
        self._gate_up(self._compute, self._gate_up_blocks, count)
        self._down(self._compute, self._down_blocks, count)
        self._log_at.value += 32 * count
        self.launched.append((self.event, count))

    def executed(self) -> list[tuple[int, int]]:
        """(before, behind) of every expert executed, in order: its tag as the kernels read it at either end."""
        count = sum(count for _, count in self.launched)
        pairs: list[tuple[int, int]] = list(map(tuple, self.log[: 4 * count].view(-1, 4)[:, :2].tolist()))
        return pairs

    # ---- state

    def reset(self) -> None:
        """Nothing told, nothing logged; streams must be idle."""
        self._dense.reset()
        self.log.fill_(-1)
        torch.cuda.synchronize()
        self._told = 0
        self._log_at.value = self.log.data_ptr()
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
        torch.cuda.synchronize()
        self.copied.clear()

    def start(self) -> None:
        """The clock starts now."""
        torch.cuda.synchronize()
        self._origin_ns = perf_counter_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the device was made."""
        return perf_counter_ns() - self._origin_ns

    def run(self, program: Generator[Any, None, None]) -> None:
        """Run a program of the host thread to its end."""
        with torch.cuda.stream(self.compute):
            for _ in program:
                pass
        torch.cuda.synchronize()

    # ---- timestamps: kernels leave theirs by the GPU's clock, copies by their events

    def instrument(self, timeline: Timeline | None = None) -> None:
        """From here on take the instants of every kernel group and copy; puts them on `timeline`, if given."""
        torch.cuda.synchronize()
        tell = self._dense.module.launch("clock_out", [ctypes.c_uint64(self._gpu_clock.data_ptr())], 1)
        tries = []
        for _ in range(50):
            zero = torch.cuda.Event(enable_timing=True)
            begin = perf_counter_ns()
            zero.record(self.compute)
            tell(self._compute, 1)
            torch.cuda.synchronize()
            tries.append((perf_counter_ns() - begin, begin, int(self._gpu_clock[0]), zero))
        took, begin, gpu_clock_ns, self._zero = min(tries, key=lambda each: each[0])
        # Both clocks were read within `took`; their distance is known to half of that.
        self._zero_ns = begin + took // 2 - self._origin_ns
        self._gpu_origin_ns = gpu_clock_ns - self._zero_ns
        self.timeline = timeline
        self._instrumented = True
        self._first_launch = len(self.launched)

    def _pause(self, duration_ns: int) -> None:
        """Take the time that keeping the books has cost out of the clock: it is no part of a step."""
        self._origin_ns += duration_ns
        self._zero_ns -= duration_ns
        self._gpu_origin_ns += duration_ns

    def _note_launch(self, prepared: Prepared, begin_ns: int) -> KernelRun:
        run = KernelRun(prepared.kind, self._awaited)
        self._awaited = []
        self.runs.append(run)
        self._noted.append((run, prepared, begin_ns))
        if self.timeline is not None:
            self.timeline.add("host", f"launch {prepared.name}", begin_ns, self.now_ns(), prepared.layer)
        return run

    def _resolve(self, now_ns: int) -> None:
        """Fill in the instants of everything that has completed; called at the end of a step."""
        assert self._zero is not None, "instruments are on"
        still = []
        for event, cuda_event, experts in self._arriving:
            if not cuda_event.query():
                still.append((event, cuda_event, experts))
                continue
            assert event.issued_ns is not None, "it stands for copies"
            event.completed_ns = self._zero_ns + round(self._zero.elapsed_time(cuda_event) * 1e6)
            start = max(self._link_free_ns, event.issued_ns)
            self._link_free_ns = max(start, event.completed_ns)
            self.link_busy_ns += self._link_free_ns - start
            if self.timeline is not None:
                for track in ("copies", "link"):
                    self.timeline.add(track, "copy", start, self._link_free_ns, expert=experts[0])
        self._arriving = still
        dense = self._dense.spans_ns()
        logged = sum(count for _, count in self.launched[: self._first_launch])
        entries = self.log[4 * logged :].view(-1, 4)[: sum(count for _, count in self.launched[self._first_launch :])]
        experts_ns = iter(entries[:, 2:].tolist())
        counts = iter(count for _, count in self.launched[self._first_launch :])
        free = self.blocked[0][0] if self.blocked else 0
        for run, prepared, launched_ns in self._noted:
            if prepared.kind == "experts":
                spans = [next(experts_ns) for _ in range(next(counts))]
                begin, end = min(begin for begin, _ in spans), max(end for _, end in spans)
            else:
                begin, end = dense[prepared.name, prepared.layer]
            # Clocks differ by microseconds: a stream runs one group after another, and all before the host heard of it.
            run.ready_ns = max(launched_ns, free)
            run.start_ns = min(max(begin - self._gpu_origin_ns, free), now_ns)
            run.end_ns = free = min(max(end - self._gpu_origin_ns, run.start_ns), now_ns)
            run.busy_ns = run.end_ns - run.start_ns
            # Waited for, but copied before the instruments were on: it was there.
            run.waits = [event for event in run.waits if event.completed_ns is not None]
            if self.timeline is not None:
                self.timeline.add("compute", prepared.name, run.start_ns, run.end_ns, prepared.layer)
        self._noted.clear()
        self._first_launch = len(self.launched)
