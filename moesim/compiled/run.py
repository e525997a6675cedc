"""A run that is decided, enqueued and timed in machine code, block by block; its steps go to the same tally.

What it spends time by comes from where the loop takes it: kernels from `kernels.Kernels`, copies from `FastGPU`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from moesim.capacity import Capacity
from moesim.compiled import clock, jit, recency
from moesim.compiled.clock import Integers
from moesim.decide import OptimumHits, streams_whole_layers
from moesim.decision import REASONS, Copy, Decision
from moesim.devices.base import Prepared
from moesim.devices.fast import FastGPU
from moesim.engine import EngineSpec
from moesim.events import DECODE, Step, steps
from moesim.hardware import Hardware
from moesim.kernels import Kernels
from moesim.model import ModelSpec
from moesim.policies.composition import Policy
from moesim.policies.registry import rule_class
from moesim.policies.roles import Prefetch
from moesim.replay import StepOutcome
from moesim.token_time import TokenTime
from moesim.trace import Trace

BLOCK_ACCESSES = 100_000
"""How many accesses are decided and timed at once: as many as fit a processor's cache with their operations."""
COMPILED_RULES = {
    "route": "true-top-k", "on_miss": "fetch", "evict": "lru", "budget": "shared", "draft": "none",
}
"""Rules without parameters, by role."""
COMPILED_PREFETCHES = ("none", "predicted", "pre-gated", "static-frequency", "activation-matrix", "expert-map")
"""Rules that do not look at what is resident, so that they can be asked before. They stay plain Python."""


COMPILED_ENGINE = {
    "name", "source", "mode", "experts_captured", "copies_per_expert", "start", "read_back", "prefill", "launches",
    "last_layer_reused",
}
"""Keys of an engine that the compiled code knows; whatever else there is must be as it is by default."""


def is_compiled(policy: Policy, capacity: Capacity, engine: EngineSpec) -> bool:
    """Whether the run is one that this package decides and times, and its compiler is installed."""
    others = {name: key for name, key in EngineSpec.model_fields.items() if name not in COMPILED_ENGINE}
    plain = {role: given for role, given in policy.rules.items() if role in COMPILED_RULES}
    return (
        jit.AVAILABLE
        and policy.rules["prefetch"][0] in COMPILED_PREFETCHES
        and plain == {role: (rule, {}) for role, rule in COMPILED_RULES.items()}
        and not (capacity.per_layer or capacity.everything)
        and all(getattr(engine, name) == key.default for name, key in others.items())
    )


@dataclass
class _KernelTable:
    """Kernels that were used, numbered, as the compiled clock reads them."""

    device: FastGPU
    numbers: dict[int, int] = field(default_factory=dict)
    """By identity: a kernel group is made ready once."""
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)

    def number(self, prepared: Prepared) -> int:
        if id(prepared) not in self.numbers:
            self.numbers[id(prepared)] = len(self.rows)
            attention = prepared.kind == "attention"
            self.rows.append(
                (prepared.duration_ns, prepared.launches, self.device.captured[prepared.kind], attention)
            )
        return self.numbers[id(prepared)]


@dataclass(frozen=True)
class _Block:
    """Some steps and their events, as the compiled code reads them."""

    steps: list[Step]
    accesses: Integers
    touched: Integers
    pairs: Integers
    starts: Integers
    """[events + 1]: where each event's accesses begin in the three arrays above."""
    streamed: NDArray[np.bool_]
    """Of each step: whole layers are copied ahead."""
    wanted: Integers
    """Whom events have prefetched."""
    wanted_starts: Integers


def _blocks(
    window: Iterator[Step], prefetch: Prefetch, layers: int, experts: int, top_k: int, *, streams: bool
) -> Iterator[_Block]:
    """Steps in blocks of about `BLOCK_ACCESSES`. `streams`: prefill may copy whole layers."""
    asks = type(prefetch) is not rule_class("prefetch", "none")
    size = max(1, BLOCK_ACCESSES // (layers * top_k))
    offsets = np.repeat(np.arange(layers) * experts, top_k)
    while block := list(islice(window, size)):
        accesses, touched, pairs, lengths = [], [], [], []
        wanted: list[int] = []
        wanted_starts = [0]
        streamed = np.array([streams and streams_whole_layers(step, experts) for step in block])
        for step, whole_layers in zip(block, streamed.tolist(), strict=True):
            if step.tokens == 1 and min(step.pairs) == top_k:
                row = step.chosen[0].astype(np.int64)
                accesses.append(row.ravel() + offsets)
                touched.append(row[:, ::-1].ravel() + offsets)
                pairs.append(np.ones(layers * top_k, np.int64))
            else:
                first_use = [layer * experts + e for layer in range(layers) for e in step.accesses[layer]]
                accesses.append(np.array(first_use, np.int64))
                order = [layer * experts + e for layer in range(layers) for e in step.touch_order(layer)]
                touched.append(np.array(order, np.int64))
                pairs.append(_pairs(step, layers, experts)[accesses[-1]])
            lengths += [len(each) for each in step.accesses]
            for layer in range(layers) if asks else ():
                prefetch.on_event(step, layer)
                if not whole_layers and prefetch.asks(step, layer):
                    wanted += prefetch.wanted(step, layer)
                wanted_starts.append(len(wanted))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        yield _Block(
            block, np.concatenate(accesses), np.concatenate(touched), np.concatenate(pairs), starts, streamed,
            np.array(wanted, np.int64), np.array(wanted_starts) if asks else np.zeros(len(starts), np.int64),
        )


def _pairs(step: Step, layers: int, experts: int) -> Integers:
    """Of each expert over all layers, how many of the step's tokens chose it."""
    counted = np.zeros(layers * experts, np.int64)
    for layer in range(layers):
        chosen = step.chosen[:, layer].ravel()
        counts = np.bincount(chosen[chosen < experts], minlength=experts)
        counted[layer * experts : (layer + 1) * experts] = counts
    return counted


class CompiledRun:
    """One run of a window under LRU or on demand, with or without a prefetch that does not look at the cache.

    `observe` is told the outcome of every step.
    """

    def __init__(
        self,
        trace: Trace,
        stop: int,
        capacity: Capacity,
        model: ModelSpec,
        engine: EngineSpec,
        hardware: Hardware,
        prefetch: Prefetch,
        optimum: OptimumHits | None,
        observe: Callable[[StepOutcome], None],
        context_tokens: int | None,
    ) -> None:
        self._trace = trace
        self._stop = stop
        self._capacity = capacity
        self._engine = engine
        self._prefetch = prefetch
        prefetch.prepare(trace.layers, trace.n_experts)
        self._optimum = optimum
        self._observe = observe
        self._context_tokens = context_tokens
        self._device = FastGPU(hardware, engine)
        self._kernels = Kernels(self._device, model, engine)
        self._table = _KernelTable(self._device)
        moe = {number: place for place, number in enumerate(model.moe_layers)}
        self._plan = np.array([moe.get(number, -1) for number in range(model.layers)])
        self._dense_first = 0 if model.dense_layers else -1
        self._figures = np.array([
            hardware.enqueue_kernel_ns, hardware.enqueue_graph_ns, hardware.enqueue_copy_ns, hardware.record_event_ns,
            hardware.wait_event_ns, hardware.read_back_ns, hardware.copy_start_up_ns, hardware.event_latency_ns,
            hardware.loop_layer_ns, hardware.switch_ns,
        ])
        self._pieces = np.array(self._device.pieces_ns(model.expert_bytes))
        self._cache = recency.new_cache(trace.layers, trace.n_experts, capacity.slots)
        self._instants = np.zeros(clock.INSTANTS, np.int64)
        self._instants[clock.COPIED] = -1
        self._instants[clock.CAPTURED] = self._device.captured["attention"]
        self._bursts = np.empty((0, 2), np.int64)
        nothing = np.empty(0, np.int64)
        self._completed, self._issued = nothing, nothing
        self._waited = self._foreseen = np.empty(0, np.bool_)

    @property
    def kernel_sources(self) -> set[str]:
        """Where kernel times came from: `measured`, `roofline`, or both."""
        return self._device.kernel_sources

    def run(self) -> None:
        """From the first step to the last."""
        trace, seen = self._trace, 0
        # Two layers fit into the slots: one is copied while the other is used.
        streams = self._capacity.slots >= 2 * trace.n_experts and self._engine.prefill == "stream"
        window = steps(trace, 0, self._stop)
        for block in _blocks(
            window, self._prefetch, trace.layers, trace.n_experts, trace.top_k, streams=streams
        ):
            flags = (
                np.empty(0, np.uint8) if self._optimum is None
                else self._optimum.of_accesses(seen, seen + len(block.accesses))
            )
            seen += len(block.accesses)
            program, counts = self._decide(block, flags)
            self._tell(block, counts, self._time(program, len(block.steps)))

    def _decide(self, block: _Block, optimum: NDArray[np.uint8]) -> tuple[recency.Program, Integers]:
        """What a block enqueues, with the kernels of experts by their number; and its counts, step by step."""
        experts, cache = self._trace.n_experts, self._cache
        reuses = np.array([self._engine.last_layer_reused and step.phase == DECODE for step in block.steps])
        dense = np.array([self._dense(step) for step in block.steps])
        # Room for the most that can be enqueued: seven operations an access, eight for each expert streamed ahead.
        room = len(block.steps) * (len(self._plan) + 4) + 6 * len(block.starts) + 8 * len(block.accesses)
        room += 8 * (len(block.wanted) + int(block.streamed.sum()) * self._trace.layers * 2 * experts)
        known = len(self._completed)
        program = recency.Program(
            np.empty(room, np.int8), np.empty(room, np.int64),
            np.concatenate([self._waited, np.empty(room, np.bool_)]),
            np.concatenate([self._foreseen, np.empty(room, np.bool_)]),
        )
        cache.state[recency.EVENTS] = known
        counts = np.zeros((len(block.steps), recency.COUNT_COLUMNS), np.int64)
        pairs_limit = int(np.add.reduceat(block.pairs, block.starts[:-1]).max(initial=0)) + 1
        length = recency.decide_and_enqueue(
            cache, program, block.accesses, block.touched, block.pairs, block.starts, block.wanted,
            block.wanted_starts, optimum, dense, self._plan, block.streamed, reuses, experts,
            self._capacity.workspace, self._engine.start == "each", pairs_limit, counts,
        )
        codes, arguments = program.codes[:length], program.arguments[:length]
        named = (codes == clock.LAUNCH) & (arguments < 0)
        sizes, which = np.unique(-1 - arguments[named], return_inverse=True)
        numbers = [self._table.number(self._kernels.experts(0, *divmod(int(size), pairs_limit))) for size in sizes]
        arguments[named] = np.array(numbers, np.int64)[which]
        return program._replace(codes=codes, arguments=arguments), counts

    def _dense(self, step: Step) -> tuple[int, int, int, int]:
        """The numbers of a step's kernels: attention, router, a dense layer, head."""
        tokens, sequences, context = step.tokens, len(step.requests), step.context_tokens
        if self._context_tokens is not None and step.phase == DECODE:
            context = self._context_tokens
        kernels, number = self._kernels, self._table.number
        return (
            number(kernels.attention(0, tokens, context, sequences)),
            number(kernels.router(0, tokens)),
            -1 if self._dense_first < 0 else number(kernels.dense_layer(0, tokens, context, sequences)),
            number(kernels.head(sequences)),
        )

    def _time(self, program: recency.Program, count: int) -> Integers:
        """Pass the time of a block; keeps what later blocks may wait for, under new numbers."""
        known, events = len(self._completed), int(self._cache.state[recency.EVENTS])
        completed, issued = (
            np.concatenate([old, np.empty(events - known, np.int64)]) for old in (self._completed, self._issued)
        )
        copies = int((program.codes == clock.COPY).sum())
        bursts = np.concatenate([self._bursts, np.empty((copies, 2), np.int64)])
        found = np.zeros((count, clock.STEP_COLUMNS), np.int64)
        clock.pass_time(
            program.codes, program.arguments, np.array(self._table.rows), self._figures, self._pieces, self._instants,
            completed, issued, known, bursts, found,
        )
        self._bursts = bursts[: self._instants[clock.PENDING]]
        arrival = self._cache.arrival
        live, renumbered = np.unique(arrival[arrival >= 0], return_inverse=True)
        arrival[arrival >= 0] = renumbered
        self._completed, self._issued = completed[live], issued[live]
        self._waited, self._foreseen = program.waited[live], program.foreseen[live]
        return found

    def _tell(self, block: _Block, counts: Integers, found: Integers) -> None:
        """Hand each step's outcome on; the decisions of its events stand summed up in one."""
        for step, number, time in zip(block.steps, counts.tolist(), found.tolist(), strict=True):
            decision = Decision(
                -1, [], [Copy(-1, -1, None)] * number[recency.PREFETCHES], True, True,
                hits=number[recency.HITS], hits_by_prefetch=number[recency.HITS_BY_PREFETCH],
                misses=Counter(dict(zip(REASONS, number[recency.COMPULSORY : recency.CAPACITY + 1], strict=True))),
                prefetch_dropped=number[recency.DROPPED], prefetch_unused=number[recency.UNUSED],
            )
            begin, end = time[clock.STEP_BEGIN], time[clock.STEP_END]
            parts = TokenTime(*time[clock.ATTENTION : clock.IDLE + 1])
            assert parts.total_ns == end - begin, "the named sum is the token's time"
            self._observe(
                StepOutcome(
                    step, begin, end, parts, [decision], time[clock.LATE_PREFETCHES], time[clock.COPIES_MADE],
                    time[clock.LINK_BUSY], time[clock.BLOCKED],
                )
            )
