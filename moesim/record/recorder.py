"""Requests through a model, one after another, and what the routers chose for every token.

A request is one prefill pass over its prompt, then one pass per further token through the KV cache, at batch 1. The
tokens are given (teacher-forced), so a recording of held-out text is the routing of that text, whatever the model
would have written itself. Since the tokens are given and no sequence sees another, consecutive requests of the same
lengths are computed side by side, which is many times faster; their rows are those of one request after the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache

from moesim.errors import InputError
from moesim.record.capture import Captured, RouterCapture
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.next_layer import next_layer_probabilities
from moesim.record.recording import Recording
from moesim.trace import DECODE, PREFILL, id_dtype


@dataclass(frozen=True)
class TokenSequence:
    """What one request will hold: its token ids, how many of them are the prompt, and the kind of text it is."""

    kind: str
    tokens: Sequence[int]
    prompt_tokens: int


def record_requests(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    requests: Sequence[TokenSequence],
    *,
    predictors: Sequence[str] = (),
    default_vectors: torch.Tensor | None = None,
    ranked: int = 12,
    all_scores: bool = False,
) -> Recording:
    """Run `requests` in order and record every token of them.

    `predictors` are names from `moesim.record.predictors.next_layer`; each is kept as its `ranked` likeliest experts
    with their router probabilities. `all_scores` keeps the true router's probabilities of every expert.

    Raises:
        InputError: no request is given, or a prompt is empty or longer than its sequence.
    """
    for number, request in enumerate(requests):
        if not 1 <= request.prompt_tokens <= len(request.tokens):
            raise InputError(
                f"request {number}: a prompt of {request.prompt_tokens} tokens in a sequence of {len(request.tokens)}: "
                "it has at least 1 and at most all of them"
            )
    if not requests:
        raise InputError("no request to record")
    parts: list[dict[str, torch.Tensor]] = []
    step_parts, request_parts, position_parts, phase_parts = [], [], [], []
    first_step, n_experts = 0, 0
    runs = chain.from_iterable(_run(model, layers, alike) for alike in _alike(requests))
    for number, (request, captured) in enumerate(zip(requests, runs, strict=True)):
        n_experts = captured.logits.shape[-1]
        part = {"experts": captured.experts, "weights": captured.weights}
        if all_scores:
            part["scores"] = captured.probabilities
        for name in predictors:
            probabilities = next_layer_probabilities(layers, captured, name, default_vectors)
            top = probabilities.topk(ranked, dim=-1)
            part[f"{name} ranking"], part[f"{name} scores"] = top.indices, top.values
        parts.append({key: value.transpose(0, 1).cpu() for key, value in part.items()})

        tokens, prompt = len(request.tokens), request.prompt_tokens
        position = np.arange(tokens, dtype=np.uint32)
        # The whole prompt is one forward pass, every later token one of its own.
        step_parts.append(first_step + np.maximum(position.astype(np.int64) - (prompt - 1), 0).astype(np.uint32))
        request_parts.append(np.full(tokens, number, dtype=np.uint32))
        position_parts.append(position)
        phase_parts.append(np.where(position < prompt, PREFILL, DECODE).astype(np.uint8))
        first_step += tokens - prompt + 1

    ids = id_dtype(n_experts)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return torch.cat([part[name] for part in parts]).float().numpy().astype(dtype)

    predicted: dict[str, tuple[NDArray[Any], NDArray[Any] | None]] = {}
    for name in predictors:
        ranking, scores = column(f"{name} ranking", ids), column(f"{name} scores", np.float16)
        ranking[:, 0], scores[:, 0] = np.iinfo(ids).max, 0  # nothing foresees the first layer
        predicted[name] = (ranking, scores)
    return Recording(
        experts=column("experts", ids),
        weights=column("weights", np.float16),
        step=np.concatenate(step_parts),
        request=np.concatenate(request_parts),
        position=np.concatenate(position_parts),
        phase=np.concatenate(phase_parts),
        scores=column("scores", np.float16) if all_scores else None,
        predicted=predicted,
    )


def _alike(requests: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    """Runs of consecutive requests with the same prompt length and the same number of tokens."""
    for _, group in groupby(requests, key=lambda request: (request.prompt_tokens, len(request.tokens))):
        yield list(group)


@torch.inference_mode()
def _run(model: nn.Module, layers: Sequence[MoeLayer], requests: list[TokenSequence]) -> list[Captured]:
    """Prefill and decode of `requests`, alike in length, side by side; what was captured of each, in token order."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(request.tokens) for request in requests], dtype=torch.long, device=device)
    sequences, length = tokens.shape
    cache = DynamicCache()
    order = []  # the place of every (sequence, token) in what the passes leave one after the other
    with RouterCapture(layers) as capture:
        start, end, before = 0, requests[0].prompt_tokens, 0
        while start < length:
            model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
            order.append(before + torch.arange(sequences * (end - start), device=device).view(sequences, -1))
            before += sequences * (end - start)
            start, end = end, end + 1
        captured = capture.take()
    return [captured.select(rows) for rows in torch.cat(order, dim=1)]
