"""Continuous batching: whoever forms the next step from the requests that are there when the last one ends.

Iteration-level scheduling (Orca, OSDI 2022, section 3.1) with prompts first, as vLLM did before it mixed them:

    1. Waiting requests are admitted in the order of arrival, while fewer than `max_batch` run, their prompts together
       have at most `max_prefill_tokens` and their KV cache fits. Nobody overtakes.
    2. If that brought prompts, they are the next step. Else every running request decodes its next row.
    3. If nobody is there, the step waits for the next arrival.

A request's KV cache is reserved whole at its admission, so nobody has to be driven out again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.replay import StepOutcome
from moesim.requests.latency import Latency
from moesim.requests.recorded import Request
from moesim.requests.served_step import ServedStep
from moesim.trace import Trace

ROWS_HELD = 1024
"""After so many rows the pages of the trace that were read are given back."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a step, and the KV cache of each request beside what all may take together."""

    max_batch: int
    max_prefill_tokens: int
    kv_bytes: int
    """Of all admitted requests together."""
    request_kv_bytes: Sequence[int]


@dataclass(slots=True, eq=False)
class _Running:
    """An admitted request and how far it is."""

    request: Request
    decoded: int = 0
    prompt_ran: bool = False

    @property
    def finished(self) -> bool:
        return self.prompt_ran and self.decoded == len(self.request.decode)


class Scheduler:
    """One stream under one clock. `steps` is the window of a replay, whose outcomes `observe` must be told."""

    def __init__(
        self, trace: Trace, requests: Sequence[Request], limits: Limits, latency: Latency,
        observe: Callable[[StepOutcome], None] = lambda outcome: None,
    ) -> None:
        """`requests` in the order of arrival; each one's KV cache fits when it is alone."""
        self._trace = trace
        self._requests = requests
        self._limits = limits
        self._latency = latency
        self._observe = observe
        self._now_ns = 0
        self._next = 0
        self._running: list[_Running] = []
        self._in_step: list[_Running] = []
        self._kv_free = limits.kv_bytes
        self.kv_peak_bytes = 0

    def steps(self) -> Iterator[ServedStep]:
        """The steps, each formed when it is asked for."""
        rows_read = 0
        while self._running or self._next < len(self._requests):
            not_before_ns = 0
            if not self._running:
                not_before_ns = self._requests[self._next].arrival_ns
                self._now_ns = max(self._now_ns, not_before_ns)
            step = self._formed(self._admitted(), not_before_ns)
            rows_read += step.tokens
            if rows_read >= ROWS_HELD:
                self._trace.release()
                rows_read = 0
            yield step

    def observe(self, outcome: StepOutcome) -> None:
        """A step has ended: every sequence in it has one more token, and some have their last."""
        self._now_ns = outcome.end_ns
        for sequence in self._in_step:
            if not sequence.prompt_ran:
                sequence.prompt_ran = True
            else:
                sequence.decoded += 1
            self._latency.token(sequence.request, outcome, last=sequence.finished)
            if sequence.finished:
                self._kv_free += self._limits.request_kv_bytes[sequence.request.number]
        self._running = [sequence for sequence in self._running if not sequence.finished]
        self._latency.step(outcome)
        if self._latency.in_window(outcome):
            self._observe(outcome)

    def columns(self) -> dict[str, int | float | None]:
        """The columns of a row that a stream adds."""
        return self._latency.columns() | {"kv_peak_bytes": self.kv_peak_bytes}

    def _admitted(self) -> list[_Running]:
        """Those among the newly admitted who have a prompt to run."""
        limits, tokens = self._limits, 0
        prompts: list[_Running] = []
        while self._next < len(self._requests) and len(self._running) < limits.max_batch:
            request = self._requests[self._next]
            kv_bytes = limits.request_kv_bytes[self._next]
            tokens += len(request.prompt)
            if request.arrival_ns > self._now_ns or kv_bytes > self._kv_free:
                break
            if prompts and tokens > limits.max_prefill_tokens:
                break
            self._next += 1
            self._kv_free -= kv_bytes
            self.kv_peak_bytes = max(self.kv_peak_bytes, limits.kv_bytes - self._kv_free)
            sequence = _Running(request, prompt_ran=not len(request.prompt))
            self._running.append(sequence)
            if len(request.prompt):
                prompts.append(sequence)
        return prompts

    def _formed(self, prompts: list[_Running], not_before_ns: int) -> ServedStep:
        self._in_step = prompts or self._running
        of_row: list[int] = []
        if prompts:
            rows = np.concatenate([sequence.request.prompt for sequence in prompts])
            for sequence in prompts:
                of_row += [sequence.request.number] * len(sequence.request.prompt)
        else:
            rows = np.array([sequence.request.decode[sequence.decoded] for sequence in self._running])
            of_row = [sequence.request.number for sequence in self._running]
        contexts = [sequence.request.context_tokens(sequence.decoded + (not prompts)) for sequence in self._in_step]
        return ServedStep(self._trace, rows, of_row, contexts, not_before_ns)
