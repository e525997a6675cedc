"""The replay loop: the order of a step, written once for every device.

    drafting:   k passes of a draft model, whoever they name is copied (moesim/draft/passes.py)
    per layer:  attention, router -> ids on the host -> decision -> demand copies, prefetch copies -> expert kernels
    per step:   head -> token ids on the host

The loop is a program of the host thread: it enqueues work on two in-order streams, orders them by events, and
blocks only where it reads ids back. It yields whatever the device waits by and knows nothing of it.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from moesim.cpu_experts import CpuExperts
from moesim.decision import Copy, Decision, Wave
from moesim.devices.base import Device, Event, KernelRun, Prepared
from moesim.draft.passes import DraftPasses
from moesim.engine import EngineSpec
from moesim.events import DECODE, Step
from moesim.host_tier import HostTier
from moesim.kernels import Kernels
from moesim.late_guesses import LateGuesses
from moesim.model import ModelSpec
from moesim.token_time import TokenTime, named_sum
from moesim.versions import Versions


class Decisions(Protocol):
    """Whoever decides: a policy at work (`Decider`), or its decisions played back."""

    def begin(self, step: Step) -> None: ...
    def foresee(self, step: Step, number: int) -> Decision: ...
    def decide(self, step: Step, layer: int) -> Decision: ...
    def finish(self, layer: int) -> None: ...


@dataclass(slots=True)
class StepOutcome:
    """What one step did and when. `late_prefetches` counts experts that were foreseen and still waited for."""

    step: Step
    begin_ns: int
    end_ns: int
    time: TokenTime
    decisions: list[Decision]
    late_prefetches: int
    copies: int
    """Experts copied: fewer than decided where the engine reuses the last layer."""
    link_busy_ns: int
    host_blocked_ns: int
    cpu_busy_ns: int = 0
    """How long experts ran on the CPU."""
    drafts: Sequence[Decision] = ()
    """What each pass of a draft decided before the step."""
    draft_ns: int = 0
    """How long the draft's kernels ran, out of the step's time."""
    cancelled_bytes: int = 0
    """Of copies taken back meanwhile, now or earlier decided."""
    disk_reads: int = 0
    disk_busy_ns: int = 0
    guesses_dropped: int = 0
    """Prefetches taken back whole because their layer's router spoke first."""
    served_tokens: int = 0
    could_serve_tokens: int = 0
    """What experts that are servers did, and could have done by the time that the slowest of each launch had."""
    copies_low: int = 0
    """Of the copies, those of experts in low precision."""


class Replay:
    """One run of a window on a device. `observe` is told the outcome of every step."""

    def __init__(
        self,
        window: Iterable[Step],
        decisions: Decisions,
        device: Device[Any],
        model: ModelSpec,
        engine: EngineSpec,
        slots: int,
        observe: Callable[[StepOutcome], None],
        context_tokens: int | None = None,
        predictor: str | None = None,
        cpu: CpuExperts | None = None,
        draft: ModelSpec | None = None,
        late: LateGuesses | None = None,
        copies: int = 1,
        versions: Versions | None = None,
        tier: HostTier | None = None,
    ) -> None:
        """`predictor` names the ranking that is executed in events for which the router was not asked.

        `cpu` is needed where decisions have experts executed on the CPU, `versions` where they name any in low
        precision; `draft` is the model that decodes ahead of steps that verify drafts; `copies` the most copies of one
        expert, each with a number of its own. With `late` prefetches that have not begun when their layer's router
        speaks are dropped. `tier` is host memory where it does not hold all experts.
        """
        self._window = window
        self._decisions = decisions
        self._device = device
        self._engine = engine
        self._observe = observe
        self._context_tokens = context_tokens
        self._predictor = predictor
        self._cpu = cpu
        self._late = late
        self._tier = tier
        self._cpu_runs = [] if cpu is None else cpu.device.cpu_runs
        self._versions = versions or Versions(model)
        self._bytes_of_place = self._versions.bytes_of_place
        self._several_versions = self._versions.several
        self._kernels = Kernels(device, model, engine, versions=versions)
        moe = {number: place for place, number in enumerate(model.moe_layers)}
        self._plan = [moe.get(number, -1) for number in range(model.layers)]
        """Per layer of the model: its place among the MoE layers, or -1 for a dense one."""
        self._passes = None if draft is None else DraftPasses(device, draft, engine, self._plan)
        self._drafts: list[Decision] = []
        self._draft_launches = 0
        self._last_layer = len(model.moe_layers) - 1
        self._experts_per_layer = model.experts * copies
        self._servers = engine.expert_kernels == "servers"
        self._loads: dict[int, int] | None = None
        self._served = self._could_serve = 0
        self._first_low = len(model.moe_layers) * self._experts_per_layer
        # When the content of a slot has arrived, and which kernel, counted from 1, read it last.
        self._arrival: list[Event | None] = [None] * slots
        self._read_by = [0] * slots
        self._launched = 0
        self._complete = 0
        """Expert kernels that the host knows to be complete."""
        self._waited_for = {device.copies: 0, device.prefetches: 0}
        """Expert kernels that a stream of copies waits for."""
        self._foreseen_runs: list[tuple[KernelRun, Event, int]] = []
        self._copies = self._copies_low = 0

    def program(self) -> Generator[Any, None, None]:
        """The host thread, from the first step to the last."""
        device = self._device
        begin = link_busy = cancelled = reads = disk_busy = 0
        for step in self._window:
            if step.not_before_ns > begin:
                begin = device.idle_until(step.not_before_ns)
            self._copies = self._copies_low = self._served = self._could_serve = 0
            end, decisions = yield from self._step(step)
            time = named_sum(begin, end, device.runs, device.blocked, self._cpu_runs)
            assert time.total_ns == end - begin, "the named sum is the token's time"
            late = sum(
                count
                for run, event, count in self._foreseen_runs
                if event.completed_ns is not None and event.completed_ns > run.ready_ns
            )
            blocked = sum(until - since for since, until in device.blocked)
            on_cpu = sum(until - since for since, until in self._cpu_runs)
            draft_ns = sum(run.busy_ns for run in device.runs[: self._draft_launches])
            link_busy, link_was_busy = device.link_busy_ns, link_busy
            taken_back, cancelled = device.cancelled_bytes - cancelled, device.cancelled_bytes
            dropped = 0
            if self._late is not None:
                dropped, self._late.dropped = self._late.dropped, 0
            disk_reads = disk_ns = 0
            if self._tier is not None:
                disk_reads, reads = self._tier.reads - reads, self._tier.reads
                disk_ns, disk_busy = self._tier.device.disk_busy_ns - disk_busy, self._tier.device.disk_busy_ns
            device.runs.clear()
            device.blocked.clear()
            self._cpu_runs.clear()
            self._foreseen_runs.clear()
            self._observe(
                StepOutcome(
                    step, begin, end, time, decisions, late, self._copies, link_busy - link_was_busy, blocked, on_cpu,
                    self._drafts, draft_ns, taken_back, disk_reads, disk_ns, dropped, self._served, self._could_serve,
                    self._copies_low,
                )
            )
            begin = end

    def _step(self, step: Step) -> Generator[Any, None, tuple[int, list[Decision]]]:
        device, kernels, decisions = self._device, self._kernels, self._decisions
        tokens, sequences = step.tokens, len(step.requests)
        context = step.context_tokens
        if self._context_tokens is not None and step.phase == DECODE:
            context = self._context_tokens
        decisions.begin(step)
        self._drafts, self._draft_launches = [], 0
        if step.drafted and self._passes is not None:
            self._drafts = yield from self._passes.run(step, context, decisions.foresee, self._copy_foreseen)
            self._draft_launches = len(device.runs)
        made = []
        for number, layer in enumerate(self._plan):
            if layer < 0:
                device.launch(device.compute, kernels.dense_layer(number, tokens, context, sequences))
                continue
            device.launch(device.compute, kernels.attention(layer, tokens, context, sequences))
            device.launch(device.compute, kernels.router(layer, tokens))
            made.append((yield from self._event(step, layer)))
        device.launch(device.compute, kernels.head(sequences + step.drafted))
        end = yield from self._read_ids()
        return end, made

    def _event(self, step: Step, layer: int) -> Generator[Any, None, Decision]:
        """One event, behind its router: decide, copy and execute."""
        device = self._device
        ids_read = self._late is not None and self._late.concerns(step, layer)
        if ids_read:
            yield from self._drop_guesses(layer)
        decision = self._decisions.decide(step, layer)
        self._loads = decision.loads
        ids_known = self._engine.read_back == "overlapped" and not (decision.needs_true_ids or decision.on_cpu)
        if decision.reads_router and not (ids_known or ids_read):
            yield from self._read_ids()
        device.decided()
        if self._late is not None:
            self._late.hasten(decision)
        if self._cpu is not None:
            self._cpu.execute(step, decision, None if decision.needs_true_ids else self._predictor)
        waves = decision.waves
        if waves:
            self._copy_demand(waves[0])
        # The bug is in the marks that prefetching keeps; what is fetched on demand never looks at them.
        reused = self._engine.last_layer_reused and step.phase == DECODE and layer + 1 == self._last_layer
        ids_pending = decision.reads_router and ids_known
        router_done = device.record(device.compute) if ids_pending else None
        before_router = self._launched
        executed = None if decision.needs_true_ids else self._predictor
        for wave, behind in pairwise(waves):  # whatever is copied behind a wave may take its slots
            self._execute(step, layer, wave, executed)
            self._copy_demand(behind)
        if not ids_pending:
            self._copy_ahead(decision, reused)
        if waves:
            self._execute(step, layer, waves[-1], executed)
        if router_done is not None:
            yield from device.read_back(router_done)
            # The last wave's kernels still run: what is copied now need not wait for them, only for those before.
            self._complete = max(self._complete, before_router)
            self._copy_ahead(decision, reused)
        if self._cpu is not None:
            self._cpu.join(layer == self._last_layer)
        self._decisions.finish(layer)
        return decision

    def _read_ids(self) -> Generator[Any, None, int]:
        """Block until everything launched so far is done and its ids are on the host."""
        launched = self._launched
        now = yield from self._device.read_back(self._device.record(self._device.compute))
        self._complete = launched
        return now

    def _copy_demand(self, wave: Wave) -> None:
        self._copy(wave.demand)
        if wave.bottoms:
            self._copy(wave.bottoms)  # with an event of its own: tops do not wait for them

    def _copy_ahead(self, decision: Decision, reused: bool) -> None:
        self._copy(decision.prefetch, reused, foreseen=True)
        if decision.prefetch_bottoms:
            self._copy(decision.prefetch_bottoms, reused, foreseen=True)

    def _copy_foreseen(self, copies: list[Copy]) -> None:
        self._copy(copies, foreseen=True)

    def _drop_guesses(self, layer: int) -> Generator[Any, None, None]:
        """The router has spoken: forget the layer's guesses that have not begun."""
        assert self._late is not None
        yield from self._read_ids()
        for slot in (yield from self._late.drop(layer)):
            self._arrival[slot] = None

    def _copy(self, copies: Sequence[Copy], reused: bool = False, foreseen: bool = False) -> None:
        """Enqueue copies in order, behind whatever still reads their slots.

        With `reused` nothing is copied: the seed paper's public engine leaves a prefetched last layer as it is.
        """
        if not copies or reused:
            return
        device = self._device
        stream = device.prefetches if foreseen else device.copies
        each = self._engine.start == "each"
        issued = None
        group: list[int] = []
        for copy in copies:
            reader = self._read_by[copy.slot]
            if reader > self._complete and reader > self._waited_for[stream]:  # write after read
                device.wait(stream, device.record(device.compute))
                self._waited_for[stream] = self._launched
            size_bytes = self._bytes_of_place[copy.expert // self._experts_per_layer]
            read = None if self._tier is None else self._tier.bring(stream, copy.expert)
            enqueued = device.copy(stream, copy.expert, copy.slot, size_bytes)
            if self._tier is not None:
                self._tier.copied(stream, copy.expert)
                enqueued = enqueued if read is None else read  # under way since its read is
            self._copies += 1
            self._copies_low += copy.expert >= self._first_low
            issued = enqueued if issued is None else issued
            group.append(copy.slot)
            if each:
                self._arrive(stream, group, issued, foreseen)
                issued, group = None, []
        if group:
            self._arrive(stream, group, issued, foreseen)

    def _arrive(self, stream: Any, slots: list[int], issued_ns: int | None, foreseen: bool) -> None:
        event = self._device.record(stream, issued_ns)
        event.foreseen = foreseen
        for slot in slots:
            self._arrival[slot] = event

    def _execute(self, step: Step, layer: int, wave: Wave, predictor: str | None) -> None:
        """Launch a wave's expert kernels behind the copies that they need."""
        execute, slots, start = wave.execute, wave.slots, self._engine.start
        if wave.bottom_slots:
            execute = [*execute, *(self._first_low + expert for expert in execute)]
            slots = [*slots, *wave.bottom_slots]
        elif start == "all":
            self._launch_versions(step, layer, execute, slots, predictor)
            return
        here: list[int] = []
        to_come: list[int] = []
        for place, slot in enumerate(slots):
            event = self._arrival[slot]
            (here if event is None or event.waited else to_come).append(place)
        if self._engine.copy_thread is not None:  # whoever is under way arrives before whoever is missing
            to_come.sort(key=lambda place: not self._foreseen_in(slots[place]))
        groups = [here] if here else []
        if start == "all":  # tops that are here run while the rest arrives
            groups += [to_come] if to_come else []
        else:
            groups += [[place] for place in to_come]
        for places in groups:
            self._launch_versions(
                step, layer, [execute[place] for place in places], [slots[place] for place in places], predictor
            )

    def _foreseen_in(self, slot: int) -> bool:
        event = self._arrival[slot]
        return event is not None and event.foreseen

    def _launch_versions(
        self, step: Step, layer: int, experts: list[int], slots: list[int], predictor: str | None
    ) -> None:
        """Launch experts that may be in several precisions: each precision has kernels of its own."""
        if not self._several_versions:
            self._launch_experts(step, layer, experts, slots, predictor)
            return
        for group in self._versions.groups(experts):
            self._launch_experts(
                step, layer, [experts[place] for place in group], [slots[place] for place in group], predictor
            )

    def _launch_experts(
        self, step: Step, layer: int, experts: list[int], slots: list[int], predictor: str | None
    ) -> None:
        device = self._device
        foreseen: dict[int, tuple[Event, int]] = {}
        for slot in slots:
            event = self._arrival[slot]
            if event is None:
                continue
            if not event.waited:
                device.wait(device.compute, event)
                event.waited = True
            if event.foreseen:
                _, count = foreseen.get(id(event), (event, 0))
                foreseen[id(event)] = event, count + 1
            self._arrival[slot] = None
        if self._servers or self._loads is not None:
            kernels = self._kernels_of_loads(step, layer, experts, predictor)
        else:
            pairs = len(experts)
            if step.tokens > 1:
                pairs = step.pairs_of(layer, experts, self._experts_per_layer, predictor)
            version = int(experts[0] >= self._first_low)
            kernels = self._kernels.experts(layer, len(experts), pairs, version)
        run = device.launch(device.compute, kernels, slots)
        self._foreseen_runs.extend((run, event, count) for event, count in foreseen.values())
        self._launched += 1
        for slot in slots:
            self._read_by[slot] = self._launched

    def _kernels_of_loads(self, step: Step, layer: int, experts: list[int], predictor: str | None) -> Prepared:
        """Expert kernels where it matters how many tokens each expert, or copy of one, serves."""
        if self._loads is None:
            tokens = step.tokens_each(layer, experts, self._experts_per_layer, predictor)
        else:
            tokens = [self._loads[expert] for expert in experts]
        if not self._servers:
            return self._kernels.experts(layer, len(experts), sum(tokens))
        self._served += sum(tokens)
        self._could_serve += len(tokens) * max(tokens)
        return self._kernels.servers(layer, max(tokens))
