"""Fit a predictor and keep it: what `moesim fit` and the recipes call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moesim import __version__
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.default_vectors import fit_default_vectors
from moesim.record.predictors.estimator_fit import EstimatorSettings, fit_estimator
from moesim.record.predictors.fitted import Fitted
from moesim.record.predictors.fitting_text import FittingText
from moesim.record.predictors.pre_attention import WIDTH
from moesim.record.predictors.pre_attention_fit import fit_pre_attention
from moesim.record.weights import weights_sha256

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """No progress is shown."""


def default_vectors(
    model: nn.Module, layers: Sequence[MoeLayer], text: FittingText, progress: Progress = silent
) -> Fitted:
    """Default vectors as a file: `vectors` [L, experts, hidden], float32, and `counts` [L, experts], their tokens."""
    device = next(model.parameters()).device

    def batches() -> Iterator[torch.Tensor]:
        for done, batch in enumerate(text.batches):
            progress(done, len(text.batches))
            yield batch.to(device)
        progress(len(text.batches), len(text.batches))

    vectors, counts = fit_default_vectors(model, layers, batches(), layers[0].layout.n_experts)
    tensors = {"vectors": vectors, "counts": counts}
    return Fitted("default-vectors", tensors, _about(model, layers, text, 0, {}), text.windows())


def estimator(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    text: FittingText,
    vectors: Fitted,
    settings: EstimatorSettings | None = None,
    *,
    validation_share: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
) -> Fitted:
    """The estimator as a file: `net.*`, the default `vectors` that it builds on, and where it won.

    `vectors` is what `default_vectors` gave; the text that they were fitted on counts as the estimator's too.
    The last `validation_share` of the batches is kept from fitting; on them it is compared with the routers' own guess,
    and the layers on which it wins are those of `hybrid` (`about["wins"]`, indices of MoE layers).

    Raises:
        InputError: the text is too short to be split.
    """
    settings = settings or EstimatorSettings()
    batches, validation = text.split(validation_share)
    found = fit_estimator(model, layers, batches, validation, vectors.tensors["vectors"], settings, seed, progress)
    net = {f"net.{name}": tensor for name, tensor in found.net.state_dict().items()}
    tensors = {"vectors": vectors.tensors["vectors"], **net}
    about = _about(model, layers, text, seed, asdict(settings)) | {
        "default_vectors_text": vectors.about["text"],
        "validation_tokens": sum(batch.numel() for batch in validation),
        # The first layer is foreseen by nobody.
        "validation_recall": [None, *found.recall[1:]],
        "validation_recall_without": [None, *found.base_recall[1:]],
        "wins": found.wins,
    }
    return Fitted("estimator", tensors, about, np.union1d(text.windows(), vectors.windows))


def pre_attention(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    text: FittingText,
    architecture: str = "arch1",
    *,
    width: int = WIDTH,
    learning_rate: float = 1e-3,
    step_tokens: int = 1024,
    seed: int = 0,
    progress: Progress = silent,
) -> Fitted:
    """The pre-attention nets as a file: tensors named `<layer index>.<name in the net>`.

    Raises:
        InputError: an unknown architecture, or a layer without an attention module of its own.
    """
    nets = fit_pre_attention(
        model, layers, text.batches, architecture, width=width, learning_rate=learning_rate, step_tokens=step_tokens,
        seed=seed, progress=progress,
    )
    tensors = {f"{index}.{name}": tensor for index, net in enumerate(nets) for name, tensor in net.state_dict().items()}
    settings = {
        "architecture": architecture, "width": width, "learning_rate": learning_rate, "step_tokens": step_tokens,
    }
    return Fitted("pre-attention", tensors, _about(model, layers, text, seed, settings), text.windows())


def _about(
    model: nn.Module, layers: Sequence[MoeLayer], text: FittingText, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model": type(model).__name__,
        "weights_sha256": weights_sha256(model),
        "moe_layers": [layer.number for layer in layers],
        "experts": layers[0].layout.n_experts,
        "top_k": layers[0].layout.top_k,
        "text": Path(text.source).name,
        "text_sha256": text.sha256,
        "tokens": text.tokens,
        "seed": seed,
        "settings": settings,
        "moesim": __version__,
    }
