"""Requests through a model, and what the routers chose for every token.

`record_batch` runs one batch as `decoding.py` says and hands out its rows piece by piece, so that a recording of any
length can be written while it is made. `record_requests` keeps a small recording in memory, its requests one after
another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.record.capture import Captured, ChoiceCapture, Choices, RouterCapture
from moesim.record.decoding import Decoding, TokenRows, TokenSequence, check_requests, decode
from moesim.record.memory import PIECE_TOKENS
from moesim.record.moe_layers import MoeLayer, evaluating
from moesim.record.predictors.next_layer import next_layer_probabilities
from moesim.record.recording import Recording, joined
from moesim.trace import id_dtype

__all__ = ["Foresee", "TokenSequence", "record_batch", "record_requests"]

Foresee = Callable[[Captured], torch.Tensor]
"""What a predictor makes of captured states: router scores [L, N, experts], 0 where nothing can be foreseen."""

@torch.inference_mode()
def record_batch(
    model: Any,
    layers: Sequence[MoeLayer],
    requests: Sequence[TokenSequence],
    decoding: Decoding,
    *,
    first_request: int = 0,
    first_step: int = 0,
    predictors: Mapping[str, Foresee] | None = None,
    attention_input: bool = False,
    ranked: int = 12,
    all_scores: bool = False,
    after_pass: Callable[[], object] = lambda: None,
) -> Iterator[Recording]:
    """Run `requests` side by side and hand out the rows in the order of execution, some thousands at a time.

    A pass over the batch is one step; requests and steps are counted on from `first_request` and `first_step`. Each of
    `predictors` is kept as its `ranked` best experts with their scores; those that read what enters attention need
    `attention_input`. `all_scores` keeps the router's score of every expert. `after_pass` is called
    after each forward pass.

    Raises:
        InputError: no request is given, a prompt is empty or longer than its sequence, or a predictor is asked for
            where no norm feeds the router or the model is an encoder-decoder.
    """
    check_requests(requests)
    predictors = predictors or {}
    if predictors and any(layer.in_encoder for layer in layers):
        raise InputError(f"predictor {next(iter(predictors))!r}: encoder and decoder are two stacks, it knows one")
    pending = _Pending(len(layers), layers[0].layout.n_experts)
    with evaluating(model), ExitStack() as stack:
        captures: dict[bool, tuple[list[int], ChoiceCapture | RouterCapture]] = {}
        capture: ChoiceCapture | RouterCapture
        for in_encoder in {layer.in_encoder for layer in layers}:
            places = [at for at, layer in enumerate(layers) if layer.in_encoder == in_encoder]
            there = [layers[at] for at in places]
            if predictors:
                capture = RouterCapture(there, attention_input=attention_input)
            else:
                capture = ChoiceCapture(there, scores=all_scores)
            stack.enter_context(capture)
            captures[in_encoder] = places, capture
        for step, computed in enumerate(decode(model, requests, decoding, first_request), first_step):
            for tokens in computed:
                places, capture = captures[tokens.in_encoder]
                seen = capture.take()
                assert seen is not None, "the pass went through these layers"
                with capture.paused():
                    columns = _columns(seen, tokens.rows, predictors, ranked, all_scores)
                pending.add(step, tokens, places, columns)
            after_pass()
            if pending.tokens >= PIECE_TOKENS:
                yield pending.take()
    if pending.tokens:
        yield pending.take()


def record_requests(
    model: Any,
    layers: Sequence[MoeLayer],
    requests: Sequence[TokenSequence],
    *,
    predictors: Sequence[str] | Mapping[str, Foresee] = (),
    default_vectors: torch.Tensor | None = None,
    attention_input: bool = False,
    ranked: int = 12,
    all_scores: bool = False,
) -> Recording:
    """Record `requests`, whose tokens are all given, as if one ran after another, each at batch 1.

    No sequence sees another, so consecutive requests of the same lengths are computed side by side, which is many
    times faster. `predictors` are names from `moesim.record.predictors.next_layer`, or functions by the names of their
    channels; the rest is as in `record_batch`.

    Raises:
        InputError: no request is given, or a prompt is empty or longer than its sequence.
    """
    check_requests(requests)

    def foresee(name: str) -> Foresee:
        return lambda captured: next_layer_probabilities(layers, captured, name, default_vectors)

    functions = predictors if isinstance(predictors, Mapping) else {name: foresee(name) for name in predictors}
    parts: list[Recording] = []
    first_request, first_step = 0, 0
    for (prompt, length), group in groupby(requests, key=lambda request: (request.prompt_tokens, len(request.tokens))):
        alike = list(group)
        pieces = record_batch(
            model, layers, alike, Decoding(), first_request=first_request, first_step=0,
            predictors=functions, attention_input=attention_input, ranked=ranked, all_scores=all_scores,
        )
        batch = joined(list(pieces))
        passes = length - prompt + 1
        own = first_step + (batch.request - first_request) * passes + batch.step
        order = np.lexsort((batch.position, batch.request))
        parts.append(replace(batch, step=own.astype(np.uint32)).select(order))
        first_request, first_step = first_request + len(alike), first_step + len(alike) * passes
    return joined(parts)


def _columns(
    seen: Choices | Captured,
    rows: torch.Tensor | None,
    predictors: Mapping[str, Foresee],
    ranked: int,
    all_scores: bool,
) -> dict[str, torch.Tensor]:
    """What one pass leaves in the trace, [N, L, ...] by name, on the device, in the trace's own precision."""
    scores = seen.probabilities if isinstance(seen, Captured) and all_scores else getattr(seen, "scores", None)
    found = {"experts": seen.experts.to(torch.int32), "weights": seen.weights.half()}
    if scores is not None:
        found["scores"] = scores.half()
    if isinstance(seen, Captured):
        for name, foresee in predictors.items():
            best = foresee(seen).topk(ranked, dim=-1)
            found[f"{name} ranking"] = best.indices.masked_fill(best.values == 0, -1).to(torch.int32)
            found[f"{name} scores"] = best.values.half()
    return {
        name: (each if rows is None else each[:, rows]).transpose(0, 1) for name, each in found.items()
    }


class _Pending:
    """Rows that wait on the device; layers that a token does not pass through hold no expert."""

    def __init__(self, layers: int, n_experts: int) -> None:
        self._layers = layers
        self._ids = id_dtype(n_experts)
        self._columns: dict[str, list[torch.Tensor]] = {}
        self._host: list[tuple[NDArray[Any], ...]] = []
        self.tokens = 0

    def add(self, step: int, tokens: TokenRows, places: Sequence[int], columns: Mapping[str, torch.Tensor]) -> None:
        """Rows of one stack in one pass; `places` are the indices of its layers among all."""
        for name, each in columns.items():
            whole = each
            if len(places) < self._layers:
                shape = (each.shape[0], self._layers, *each.shape[2:])
                whole = torch.full(shape, 0 if each.is_floating_point() else -1, dtype=each.dtype, device=each.device)
                whole[:, list(places)] = each
            self._columns.setdefault(name, []).append(whole)
        count = len(tokens.request)
        self._host.append((np.full(count, step, np.uint32), tokens.request, tokens.position, tokens.phase))
        self.tokens += count

    def take(self) -> Recording:
        """Everything added since the last time, on the host."""
        moved = {name: torch.cat(parts).cpu().numpy() for name, parts in self._columns.items()}
        step, request, position, phase = (np.concatenate(parts) for parts in zip(*self._host, strict=True))
        names = [name.removesuffix(" ranking") for name in moved if name.endswith(" ranking")]
        self._columns, self._host, self.tokens = {}, [], 0
        return Recording(
            # -1, no expert, becomes the type's largest value
            experts=moved["experts"].astype(self._ids),
            weights=moved["weights"],
            step=step,
            request=request,
            position=position,
            phase=phase,
            scores=moved.get("scores"),
            predicted={
                name: (moved[f"{name} ranking"].astype(self._ids), moved[f"{name} scores"]) for name in names
            },
        )
