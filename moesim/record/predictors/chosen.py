"""Predictors by name, made of what was fitted: what a recorder asks for."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch

from moesim.errors import InputError, nearest
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.estimator import Estimator, EstimatorNet
from moesim.record.predictors.fitted import Fitted
from moesim.record.predictors.hybrid import Hybrid
from moesim.record.predictors.pre_attention import ARCHITECTURES, PreAttention, nets_from_tensors
from moesim.record.predictors.predictor import Predictor
from moesim.record.predictors.residual import Residual
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.record.predictors.router_input import RouterInput
from moesim.record.predictors.token_windows import refuse_overlap

NAMES: Final = (
    "router-input",
    "residual",
    "residual-2-ahead",
    "residual-3-ahead",
    "residual+default-vectors",
    "estimator",
    "hybrid",
    *(f"pre-attention-{architecture}" for architecture in ARCHITECTURES),
)
_NEEDS = {"residual+default-vectors": "default-vectors", "estimator": "estimator", "hybrid": "estimator"}


def load_fitted(path: Path, weights_sha256: str) -> Fitted:
    """A file of `moesim fit`, of whichever kind.

    Raises:
        InputError: it is none, or another model's.
    """
    return Fitted.load(path, None, weights_sha256)


def names_for(layers: Sequence[MoeLayer]) -> list[str]:
    """`NAMES` less those that look farther ahead than the model is deep."""
    return [name for name in NAMES if _layers_ahead(name) < len(layers)]


def _layers_ahead(name: str) -> int:
    return int(name.split("-")[1]) if name.endswith("-ahead") else 1


def predictors_by_name(names: Sequence[str], layers: Sequence[MoeLayer], fitted: Iterable[Fitted]) -> list[Predictor]:
    """The predictors called `names`, in that order, on the device of the layers.

    An estimator's file holds the default vectors that it builds on, so it serves residual+default-vectors as well.

    Raises:
        InputError: an unknown name, or one for which nothing was fitted.
    """
    device = next(layers[0].router.parameters()).device
    files = {_key(each): each for each in fitted}
    return [_made(name, layers, files, device) for name in names]


def refuse_fitted_on(predictors: Iterable[Predictor], sequences: Sequence[Sequence[int]]) -> None:
    """Refuse to evaluate on token `sequences` that one of `predictors` was fitted on.

    Raises:
        InputError: the first sequence that shares a stretch of tokens with a fitted text.
    """
    files = {id(each): each for predictor in predictors for each in predictor.fitted}
    for each in files.values():
        refuse_overlap(each.windows, sequences, f"{each.about['text']}, on which {each.kind} was fitted")


def _key(fitted: Fitted) -> str:
    """The kind, and for one of several architectures which."""
    architecture = fitted.about["settings"].get("architecture")
    return fitted.kind if architecture is None else f"{fitted.kind}-{architecture}"


def _made(name: str, layers: Sequence[MoeLayer], files: dict[str, Fitted], device: torch.device) -> Predictor:
    if name not in NAMES:
        raise InputError(f"predictor {name!r} is unknown: {nearest(name, NAMES)}")
    if name == "router-input":
        return RouterInput(layers)
    if name == "residual" or name.endswith("-ahead"):
        return Residual(layers, _layers_ahead(name))
    needed = _NEEDS.get(name, name)
    file = files.get(needed) or (files.get("estimator") if needed == "default-vectors" else None)
    if file is None:
        command = "pre-attention --architecture " + name[-5:] if name.startswith("pre-attention") else needed
        raise InputError(f"predictor {name!r} needs what `moesim fit {command}` writes")
    predictor: Predictor
    if name.startswith("pre-attention"):
        architecture = name.removeprefix("pre-attention-")
        nets = nets_from_tensors(file.tensors, architecture)
        predictor = PreAttention([net.to(device) for net in nets], architecture)
    else:
        predictor = _on_default_vectors(name, layers, file, device)
    predictor.fitted = (file,)
    return predictor


def _on_default_vectors(name: str, layers: Sequence[MoeLayer], file: Fitted, device: torch.device) -> Predictor:
    base = ResidualDefaultVectors(layers, file.tensors["vectors"].to(device))
    if name == "residual+default-vectors":
        return base
    tensors = {key.removeprefix("net."): each for key, each in file.tensors.items() if key.startswith("net.")}
    settings = file.about["settings"]
    net = EstimatorNet.from_tensors(tensors, settings["reduction"], settings["expansion"]).to(device)
    estimator = Estimator(base, net)
    return estimator if name == "estimator" else Hybrid(base, estimator, file.about["wins"])
