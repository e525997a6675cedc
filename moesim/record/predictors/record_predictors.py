"""Requests with every predictor's answer beside the router's: what `moesim trace predictors` then reads."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors import self_draft
from moesim.record.predictors.chosen import refuse_fitted_on
from moesim.record.predictors.predictor import Predictor, foresee
from moesim.record.recorder import TokenSequence, record_requests
from moesim.record.recording import Recording
from moesim.trace import Availability


def record_predictors(
    model: Any,
    layers: Sequence[MoeLayer],
    requests: Sequence[TokenSequence],
    predictors: Sequence[Predictor],
    *,
    ranked: int = 12,
    draft_tokens: int = 0,
    draft_bits: int | None = self_draft.BITS,
) -> tuple[Recording, dict[str, Availability]]:
    """Record `requests` as `record_requests` does, each predictor a channel, and where each becomes available.

    With `draft_tokens`, the self-draft adds the channels `self-draft-1` to `self-draft-<draft_tokens>`, for that many
    times the passes of a plain recording.

    Raises:
        InputError: no request, one whose prompt is empty or longer than itself, or one that a predictor was fitted on.
    """
    refuse_fitted_on(predictors, [request.tokens for request in requests])
    recording = record_requests(
        model, layers, requests,
        predictors={each.name: partial(foresee, each) for each in predictors},
        attention_input=any(each.reads_attention_input for each in predictors),
        ranked=ranked,
    )
    available = {each.name: each.availability for each in predictors}
    predicted = dict(recording.predicted)
    if draft_tokens:
        drafted = self_draft.draft(model, layers, requests, tokens_ahead=draft_tokens, bits=draft_bits)
        for ahead, probabilities in enumerate(drafted.probabilities, start=1):
            name = f"self-draft-{ahead}"
            predicted[name] = _ranking(probabilities, ranked, recording.experts.dtype)
            available[name] = self_draft.availability(ahead, draft_bits)
    return replace(recording, predicted=predicted), available


def _ranking(
    probabilities: torch.Tensor, ranked: int, ids: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """The `ranked` most probable experts [T, L, ranked] and their scores; absent where nothing is foreseen."""
    best = probabilities.topk(ranked, dim=-1)
    named = best.indices.numpy().astype(ids)
    foreseen = (probabilities.sum(-1) > 0).numpy()[..., None]
    return np.where(foreseen, named, np.iinfo(ids).max).astype(ids), best.values.numpy().astype(np.float16)
