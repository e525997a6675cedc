"""A trace as the replay loop sees it: steps, each with one event per layer.

An *event* is one layer of one step. An *access* is one distinct expert of an event, whatever the number of tokens
that chose it. Rows of the trace are read in blocks, so that memory does not grow with the trace.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.trace import DECODE, PREFILL, Trace

__all__ = ["DECODE", "NEVER", "PREFILL", "Rows", "Scores", "Step", "UseList", "steps"]

NEVER = 1 << 62
"""The number of an event that does not come."""
BLOCK_TOKENS = 1024
Rows = slice | NDArray[np.intp]
"""Which rows of a trace: next to each other, or anywhere."""
Scores = NDArray[np.float64]
"""Router probabilities by expert, with or without an axis of tokens before it."""


class Step:
    """One forward pass: the tokens that share it and what each layer's router chose.

    `accesses[layer]` lists the distinct experts in order of first use, by token and then by slot; a token's slots
    are heaviest first. Expert numbers are within the layer.
    """

    __slots__ = ("_gates", "_loaded", "_touch", "_trace", "accesses", "layers", "pairs", "phase", "rows", "tokens")

    not_before_ns: int = 0
    """When the last of its requests has come; the host waits for that instant."""
    drafted: int = 0
    """Tokens that a draft model decoded ahead, to be verified here (moesim/draft/verification.py)."""

    def __init__(self, trace: Trace, rows: Rows, chosen: list[list[list[int]]]) -> None:
        """`chosen` is [tokens][layers][top-k], the router's choice of `rows`."""
        self._trace = trace
        self.rows = rows
        self.tokens = len(chosen)
        self.phase = int(trace.phase[rows.start if isinstance(rows, slice) else rows[0]])
        self.layers = trace.layers
        self._loaded: dict[tuple[str, int], list[list[int]]] = {}
        self._touch: list[list[int]] | None = None
        self._gates: tuple[list[Any], list[Any]] | None = None
        absent = trace.absent
        if self.tokens == 1:
            self.accesses = chosen[0]
            if any(absent in layer for layer in self.accesses):
                self.accesses = [[e for e in layer if e != absent] for layer in self.accesses]
            self.pairs = [len(layer) for layer in self.accesses]
        else:
            self.accesses = []
            self.pairs = []
            for layer in range(self.layers):
                flat = [e for token in chosen for e in token[layer] if e != absent]
                self.accesses.append(list(dict.fromkeys(flat)))
                self.pairs.append(len(flat))

    @property
    def kept(self) -> int:
        """Tokens that count: all of them, unless drafts are verified."""
        return self.tokens

    def token(self, number: int) -> "Step":
        """One token of the step, alone. Only where drafts are verified, or the step has but one."""
        assert number == 0, "only a verification step is taken apart"
        return self

    @property
    def follows_batch(self) -> bool:
        """Whether the step before this one in the trace decoded a batch."""
        trace, row = self._trace, int(self.rows.start if isinstance(self.rows, slice) else 0)
        return row > 1 and trace.phase[row - 1] == DECODE and bool(trace.step[row - 1] == trace.step[row - 2])

    def following(self) -> "Step | None":
        """The step behind this one in the trace; None at its end."""
        assert isinstance(self.rows, slice), "a step as the trace has it"
        trace, row = self._trace, self.rows.stop
        if row == trace.tokens:
            return None
        stop = row + 1
        while stop < trace.tokens and trace.step[stop] == trace.step[row]:
            stop += 1
        return Step(trace, slice(row, stop), trace.experts[row:stop].tolist())

    @property
    def top_k(self) -> int:
        """The experts chosen per token and layer."""
        return self._trace.top_k

    @property
    def chosen(self) -> NDArray[np.unsignedinteger[Any]]:
        """[tokens, layers, top-k]: each token's experts as they were recorded."""
        return self._trace.experts[self.rows]

    @property
    def experts(self) -> int:
        """The routed experts of a layer."""
        return self._trace.n_experts

    @property
    def places(self) -> list[tuple[int, int]]:
        """(request, position in it) of each token."""
        trace = self._trace
        return list(zip(trace.request[self.rows].tolist(), trace.position[self.rows].tolist(), strict=True))

    @property
    def has_scores(self) -> bool:
        """Whether the trace holds every router probability."""
        return self._trace.scores is not None

    def scores(self, layer: int) -> Scores:
        """[tokens, experts]: every router probability. Only where the trace has scores."""
        assert self._trace.scores is not None, "the rule has checked the trace"
        return self._trace.scores[self.rows, layer].astype(np.float64)

    @property
    def requests(self) -> list[int]:
        """The requests that have tokens in this step."""
        return sorted(set(self._trace.request[self.rows].tolist()))

    @property
    def context_tokens(self) -> int:
        """The longest sequence of the step, counting its own tokens."""
        return int(self._trace.position[self.rows].max()) + 1

    def touch_order(self, layer: int) -> list[int]:
        """The event's experts, heaviest gate weight last.

        For one token that is the slots in reverse. For several, weights are summed over the tokens; without
        recorded weights the number of tokens decides. Ties: the earlier first use counts as heavier.
        """
        if self.tokens == 1:
            return self.accesses[layer][::-1]
        mass = self.mass(layer)
        return sorted(self.accesses[layer], key=mass.__getitem__, reverse=True)[::-1]

    def mass(self, layer: int) -> dict[int, float]:
        """Gate weight of each distinct expert, summed over tokens; one per choice where none was recorded."""
        trace = self._trace
        chosen = trace.experts[self.rows, layer].ravel().tolist()
        weights: Iterable[float] = (
            [1.0] * len(chosen) if trace.weights is None
            else trace.weights[self.rows, layer].astype(np.float64).ravel().tolist()
        )
        mass = dict.fromkeys(self.accesses[layer], 0.0)
        for expert, weight in zip(chosen, weights, strict=True):
            if expert in mass:
                mass[expert] += weight
        return mass

    def tokens_of(self, layer: int) -> dict[int, int]:
        """How many of the step's tokens chose each distinct expert."""
        if self.tokens == 1:
            return dict.fromkeys(self.accesses[layer], 1)
        chosen, counts = np.unique(self._trace.experts[self.rows, layer], return_counts=True)
        tokens = dict(zip(chosen.tolist(), counts.tolist(), strict=True))
        tokens.pop(self._trace.absent, None)
        return tokens

    def gates(self, layer: int) -> list[list[tuple[int, float]]]:
        """Each token's experts with their gate weights, heaviest first; equal weights where none was recorded."""
        trace = self._trace
        if self._gates is None:
            weights = (
                np.full((self.tokens, self.layers, trace.top_k), 1 / trace.top_k) if trace.weights is None
                else trace.weights[self.rows].astype(np.float64)
            )
            self._gates = trace.experts[self.rows].tolist(), weights.tolist()
        absent = trace.absent
        if self.tokens == 1:
            experts, weights = self._gates[0][0][layer], self._gates[1][0][layer]
            if absent not in experts:
                return [list(zip(experts, weights, strict=True))]
        return [
            [(e, weight) for e, weight in zip(experts[layer], weights[layer], strict=True) if e != absent]
            for experts, weights in zip(*self._gates, strict=True)
        ]

    def pairs_of(
        self, layer: int, experts: Sequence[int], experts_per_layer: int, predictor: str | None = None
    ) -> int:
        """How many (token, expert) pairs fall on the experts, numbered over all layers and versions.

        With a predictor, each token is served by the first top-k of its ranking; else by what the router chose.
        """
        wanted = np.asarray(experts) % experts_per_layer
        trace = self._trace
        chosen = trace.experts if predictor is None else trace.predicted[predictor].ranking[..., : trace.top_k]
        return int(np.isin(chosen[self.rows, layer], wanted).sum())

    def tokens_each(
        self, layer: int, experts: Sequence[int], experts_per_layer: int, predictor: str | None = None
    ) -> list[int]:
        """How many tokens each of these experts serves; numbers and `predictor` as for `pairs_of`."""
        trace = self._trace
        chosen = trace.experts if predictor is None else trace.predicted[predictor].ranking[..., : trace.top_k]
        served = np.bincount(chosen[self.rows, layer].ravel(), minlength=trace.n_experts)
        return [int(served[expert - layer * experts_per_layer]) for expert in experts]

    def layer_offset(self, predictor: str) -> int:
        """How many layers before its target the prediction is available."""
        return self._trace.metadata.predictors[predictor].layer_offset

    def predicted(self, predictor: str, layer: int, count: int | None = None) -> list[int]:
        """Distinct experts predicted for `layer`: every token's first choice, then every second, and so on.

        `count` ranks per token are read, by default the model's top-k. Empty where nothing was predicted.
        """
        count = self._trace.top_k if count is None else count
        key = (predictor, count)
        if key not in self._loaded:
            absent = self._trace.absent
            ranking = self._trace.predicted[predictor].ranking[self.rows, :, :count]
            # [tokens, layers, count] -> per layer, rank by rank
            ranked = np.swapaxes(ranking, 0, 1).swapaxes(1, 2).reshape(self.layers, -1).tolist()
            self._loaded[key] = [[e for e in dict.fromkeys(each) if e != absent] for each in ranked]
        return self._loaded[key][layer]

    def predicted_gates(self, predictor: str, layer: int, count: int) -> list[list[tuple[int, float]]]:
        """Each token's first `count` predicted experts of `layer` with their scores. Only where these were recorded."""
        predicted, absent = self._trace.predicted[predictor], self._trace.absent
        assert predicted.scores is not None, "the rule has checked the trace"
        rankings = predicted.ranking[self.rows, layer, :count].tolist()
        scores = predicted.scores[self.rows, layer, :count].astype(np.float64).tolist()
        return [
            [(e, score) for e, score in zip(*token, strict=True) if e != absent]
            for token in zip(rankings, scores, strict=True)
        ]


def steps(trace: Trace, start: int = 0, stop: int | None = None) -> Iterator[Step]:
    """The steps of rows `start` to `stop` in the order in which the model ran them."""
    end = trace.tokens if stop is None else min(stop, trace.tokens)
    row = start
    while row < end:
        block_end = min(end, row + BLOCK_TOKENS)
        while block_end < end and trace.step[block_end] == trace.step[block_end - 1]:
            block_end += 1  # a step is never torn
        starts = np.flatnonzero(np.diff(trace.step[row:block_end])) + 1
        chosen: list[Any] = trace.experts[row:block_end].tolist()
        for first, last in pairwise([0, *starts.tolist(), block_end - row]):
            yield Step(trace, slice(row + first, row + last), chosen[first:last])
        row = block_end
        trace.release()


def true_accesses(step: Step, layer: int) -> Sequence[int]:
    """What the router chose."""
    return step.accesses[layer]


class UseList:
    """When each expert is used: the knowledge of an oracle. `accesses` says what a policy's events access.

    Events are numbered from 0: `step * layers + layer`, with steps counted from the start of the window.
    """

    def __init__(
        self,
        window: Iterable[Step],
        layers: int,
        experts: int,
        accesses: Callable[[Step, int], Sequence[int]] = true_accesses,
    ) -> None:
        # One 64-bit key per use, expert before event, sorted in place: memory stays at 12 bytes a use.
        uses = array("q")
        number = 0
        for step in window:
            for layer in range(layers):
                base = layer * experts
                uses.extend((base + expert) << 32 | number for expert in accesses(step, layer))
                number += 1
        keys = np.frombuffer(uses, dtype=np.int64)
        keys.sort()
        self._start = np.searchsorted(keys, np.arange(layers * experts + 1, dtype=np.int64) << 32).tolist()
        self._event = (keys & 0xFFFFFFFF).astype(np.int32)
        self._cursor = self._start[:-1].copy()

    def next_event(self, expert: int, event: int) -> int:
        """The first event after `event` that uses the expert, or NEVER. `event` must not fall between calls."""
        cursor, end = self._cursor[expert], self._start[expert + 1]
        while cursor < end and self._event[cursor] <= event:
            cursor += 1
        self._cursor[expert] = cursor
        return int(self._event[cursor]) if cursor < end else NEVER
