"""The stretch of a trace that a run replays, and what can be known about it without a clock.

Whatever is costly and asked for again is kept per process: opened traces, their hashes, the optimum's hits, and the
decisions of the last windows, which a sweep over hardware times again and again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import nlargest
from pathlib import Path
from typing import Literal

import numpy as np

from moesim.capacity import Capacity
from moesim.decide import Decider, OptimumHits, run_without_clock, streams_whole_layers
from moesim.decide_parts import decider_of
from moesim.decision import Decision
from moesim.draft.verification import verification_steps
from moesim.events import DECODE, Step, UseList, steps
from moesim.policies.composition import parse
from moesim.policies.costs import Costs
from moesim.trace import Trace

OPTIMUM_ACCESSES = 8_000_000
"""Of longer windows the offline optimum is not asked: what the future holds takes some 20 bytes an access."""


@lru_cache(maxsize=4)
def load_trace(path: Path) -> Trace:
    """A trace, opened and checked once per process: a value that breaks the format would be replayed as nonsense.

    Raises:
        TraceError: no whole `moesim-trace/1`, or the first value that breaks one of its rules.
    """
    trace = Trace.load(path)
    trace.validate()
    return trace


@lru_cache(maxsize=4)
def trace_hash(path: Path) -> str:
    """The trace's content hash, computed once per process."""
    return load_trace(path).content_hash()


@lru_cache(maxsize=8)
def window_end(path: Path, decode_tokens: int | None) -> int:
    """The row behind which `decode_tokens` tokens have been decoded; a step is never torn."""
    trace = load_trace(path)
    if decode_tokens is None:
        return trace.tokens
    decoded = rows = 0
    for step in steps(trace):
        rows += step.tokens
        if step.phase == DECODE:
            decoded += step.tokens
            if decoded >= decode_tokens:
                return rows
    return trace.tokens


@lru_cache(maxsize=256)
def largest_events(path: Path, stop: int, stream_prefill: bool, policy: str) -> tuple[int, int]:
    """How many experts the two largest events of the window bring together.

    That is what the event accesses and what was foreseen for it, right or wrong; a whole layer where one is streamed.
    """
    trace, composed = load_trace(path), parse(policy)
    route, prefetch, draft = composed.route, composed.prefetch, composed.draft
    experts = trace.n_experts * route.copies
    for prepare in (route.prepare, prefetch.prepare, draft.prepare):
        prepare(trace.layers, experts)
    largest = [0, 0]
    window = steps(trace, 0, stop)
    if draft.longest:  # the longest draft at every token: no length that a governor chooses brings more together
        window = verification_steps(trace, stop, lambda: draft.longest, lambda request, position, drafted: 0)
    for step in window:
        if stream_prefill and streams_whole_layers(step, trace.n_experts):
            return trace.n_experts, trace.n_experts
        brought: list[set[int]] = [set() for _ in range(trace.layers)]
        for number in range(step.drafted):
            for expert in draft.named(step, number):
                brought[expert // experts].add(expert)
        for layer in range(trace.layers):
            brought[layer].update(layer * experts + e for e in route.accesses(step, layer))
            prefetch.on_event(step, layer)
            for expert in prefetch.wanted(step, layer) if prefetch.asks(step, layer) else ():
                brought[expert // experts % trace.layers].add(expert)
            largest = nlargest(2, [*largest, len(brought[layer])])
    return largest[0], largest[1]


@lru_cache(maxsize=8)
def most_tokens(path: Path, stop: int, of: Literal["step", "request"]) -> int:
    """The most tokens that any step, or any request, has in the window."""
    return int(np.unique(getattr(load_trace(path), of)[:stop], return_counts=True)[1].max())


@dataclass(frozen=True)
class Window:
    """What decisions depend on, and nothing else: the rows, the policy and its slots."""

    path: Path
    stop: int
    policy: str
    capacity: Capacity
    largest: int
    stream_prefill: bool
    clocked: bool = False
    """The clock forms the steps (a stream of requests), so nothing can be known of them before."""
    costs: Costs | None = None
    """Of the machine, for a policy that weighs them; decisions of all others are the same on every machine."""
    draft_lengths: tuple[int, ...] | None = None
    """Tokens drafted before each decode step, where a governor chose them."""

    def steps(self) -> Iterator[Step]:
        """The steps from the first row on: as recorded, or as the policy's draft has them verified."""
        draft = parse(self.policy).draft
        if not draft.longest:
            return steps(load_trace(self.path), 0, self.stop)
        length = draft.length if self.draft_lengths is None else iter(self.draft_lengths).__next__
        return verification_steps(load_trace(self.path), self.stop, length, draft.accepted)

    def decider(self) -> Decider:
        """The policy, with an empty cache."""
        trace, policy = load_trace(self.path), parse(self.policy)
        layers, experts, capacity = trace.layers, trace.n_experts * policy.route.copies, self.capacity
        future = None
        if policy.oracle:
            future = UseList(self.steps(), layers, experts, policy.route.accesses)
        return decider_of(capacity)(
            policy, layers, experts, capacity, largest_event=self.largest, future=future, optimum=self.optimum(),
            stream_prefill=self.stream_prefill, costs=self.costs,
        )

    @property
    def optimum_known(self) -> bool:
        """Whether misses that offline-optimal eviction would have hit are told from those that it has too."""
        trace = load_trace(self.path)
        too_long = self.stop * trace.layers * trace.top_k > OPTIMUM_ACCESSES
        return not (self.clocked or too_long or parse(self.policy).route.looks_at_cache)

    def optimum(self) -> OptimumHits | None:
        """What offline-optimal eviction hits of the same accesses, where that tells a policy's misses from others."""
        policy, capacity = parse(self.policy), self.capacity
        if not self.optimum_known or policy.oracle or capacity.workspace or capacity.everything:
            return None
        bound = replace(
            self, policy=policy.bound_text, stream_prefill=False, costs=None,
            capacity=replace(capacity, low_slots=0, top_share=1.0, bottom_slots=0),
        )
        return optimum_hits(bound)


@lru_cache(maxsize=32)
def optimum_hits(window: Window) -> OptimumHits:
    """Which of the window's accesses offline-optimal eviction hits."""
    trace = load_trace(window.path)
    decider = window.decider()
    layers, experts = trace.layers, decider.experts
    hits = OptimumHits()
    for step in window.steps():
        decider.begin(step)
        for layer in range(layers):
            decision = decider.decide(step, layer)
            missed = {copy.expert for wave in decision.waves for copy in wave.demand}
            accesses = decider.policy.route.accesses(step, layer)
            hits.add_event(layer * experts + e not in missed for e in accesses)
            decider.finish(layer)
    return hits


@lru_cache(maxsize=2)
def recorded_decisions(window: Window) -> list[Decision]:
    """The decisions of a window, made once for all the clocks that will time them."""
    return list(run_without_clock(window.decider(), window.steps()))


class Recorded:
    """Decisions played back: they do not depend on the clock, so further clocks need not decide again."""

    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions: Iterator[Decision] = iter(decisions)

    def begin(self, step: Step) -> None:
        """Nothing to prepare."""

    def decide(self, step: Step, layer: int) -> Decision:
        """The next decision."""
        return next(self._decisions)

    def foresee(self, step: Step, number: int) -> Decision:
        """The next decision."""
        return next(self._decisions)

    def finish(self, layer: int) -> None:
        """Nothing to release."""
