"""A trace as one long list of accesses, for whoever counts and does not time.

The same events, accesses and touch order as `moesim.events` gives the replay (an access is one distinct expert of an
event; an event touches its heaviest expert last), but as arrays, block by block. Experts are numbered
`layer * experts + expert`, events `step * layers + layer`, steps from the first that is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moesim.trace import DECODE, Trace

BLOCK_TOKENS = 8192

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Accesses:
    """Consecutive events. `experts[starts[i]:starts[i + 1]]` are those of the block's event i, in touch order."""

    experts: NDArray[np.int32]
    starts: Numbers
    """[events + 1], from 0."""

    @property
    def events(self) -> int:
        """How many events the block holds: a multiple of the trace's layers."""
        return len(self.starts) - 1

    @property
    def event_of(self) -> Numbers:
        """[accesses]: the number of each access's event within the block."""
        return np.repeat(np.arange(self.events), np.diff(self.starts))

    def alone(self) -> "Accesses":
        """The same accesses in the same order, each an event of its own: what a plain cache sees."""
        return Accesses(self.experts, np.arange(len(self.experts) + 1))


def accesses(trace: Trace, *, decode_only: bool = False) -> Iterator[Accesses]:
    """The accesses of a trace in blocks of whole steps; memory does not grow with the trace.

    `decode_only` leaves the steps of prefill out. The trace's values must be valid (`Trace.validate`).
    """
    row = 0
    while row < trace.tokens:
        stop = min(trace.tokens, row + BLOCK_TOKENS)
        while stop < trace.tokens and trace.step[stop] == trace.step[stop - 1]:
            stop += 1  # a step is never torn
        begins = np.flatnonzero(np.diff(trace.step[row:stop], prepend=trace.step[row] + 1)) + row
        alone = np.diff(begins, append=stop) == 1
        taken = trace.phase[begins] == DECODE if decode_only else np.ones(len(begins), np.bool_)
        kind = np.where(taken, alone.astype(np.int8), -1)
        changes = np.flatnonzero(np.diff(kind)) + 1
        for first, last in pairwise([0, *changes.tolist(), len(begins)]):
            rows = slice(int(begins[first]), int(begins[last]) if last < len(begins) else stop)
            if kind[first] == 1:
                yield _one_token_steps(trace, rows)
            elif kind[first] == 0:
                yield _many_token_steps(trace, rows)
        row = stop
        trace.release()


def _one_token_steps(trace: Trace, rows: slice) -> Accesses:
    layers, top_k = trace.layers, trace.top_k
    chosen = trace.experts[rows, :, ::-1]
    base = (np.arange(layers, dtype=np.int32) * trace.n_experts)[None, :, None]
    numbered = chosen + base
    events = len(chosen) * layers
    present = chosen != trace.absent
    if present.all():
        return Accesses(numbered.ravel(), np.arange(events + 1) * top_k)
    sizes = present.sum(2).ravel()
    return Accesses(numbered[present], np.concatenate([[0], np.cumsum(sizes)]))


def _many_token_steps(trace: Trace, rows: slice) -> Accesses:
    """Steps of any number of tokens: distinct experts of each event, those with the least gate weight first."""
    layers, experts = trace.layers, trace.n_experts
    chosen = trace.experts[rows]
    step = np.cumsum(np.diff(trace.step[rows], prepend=trace.step[rows.start]) != 0)
    event = step[:, None] * layers + np.arange(layers)[None, :]
    present = chosen != trace.absent
    code = (event[:, :, None] * experts + chosen)[present]
    distinct, first, which = np.unique(code, return_index=True, return_inverse=True)
    weights = None if trace.weights is None else trace.weights[rows][present].astype(np.float64)
    mass = np.bincount(which, weights, len(distinct))
    # Lightest first; of two equally heavy ones the later first use counts as lighter.
    order = np.lexsort((-first, mass, distinct // experts))
    events = (int(step[-1]) + 1) * layers
    sizes = np.bincount(distinct // experts, minlength=events)
    return Accesses(
        (distinct % (layers * experts))[order].astype(np.int32), np.concatenate([[0], np.cumsum(sizes)])
    )
