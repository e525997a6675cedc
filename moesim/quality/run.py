"""A checkpoint and a text in, a `Quality` out: what `moesim quality` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import moesim
from moesim.errors import InputError
from moesim.quality import intervals
from moesim.quality.foresight import PredictorForesight
from moesim.quality.intervals import Floats
from moesim.quality.measure import AGREEMENT, DIVERGENCE, NLL, TOKENS, TRUE_NLL, Layout, measure
from moesim.quality.modes.mode import Mode
from moesim.quality.plan import Plan
from moesim.quality.stored import Measured, Method, Quality, Text
from moesim.quality.text import Blocks, read_blocks
from moesim.record.checkpoint import load_model, load_tokenizer
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.chosen import load_fitted, predictors_by_name
from moesim.record.predictors.fitted import Fitted
from moesim.record.predictors.token_windows import refuse_overlap
from moesim.record.weights import weights_sha256

DEFAULT_VECTORS = "residual+default-vectors"


@dataclass(frozen=True)
class Request:
    """What to measure. Empty `modes`, `predictors` and `first_layers` take whatever the fitted files allow."""

    model: str
    text: Path
    fitted: Sequence[Path] = ()
    modes: Sequence[str] = ()
    predictors: Sequence[str] = ()
    first_layers: Sequence[int] = ()
    cache_fractions: Sequence[float] = (0.125, 0.25, 0.5, 0.75)
    tokens: int | None = None
    block_tokens: int = 256
    prompt_tokens: int = 32
    warmup_tokens: int = 64
    lanes: int = 8
    device: str = "cpu"
    dtype: str = "auto"


def evaluate(request: Request, progress: Callable[[int, int], None] = lambda done, total: None) -> Quality:
    """Load, check everything that can be wrong, then measure.

    Raises:
        InputError: what was asked for does not fit together, in one line.
    """
    if request.block_tokens < request.prompt_tokens + 2:
        raise InputError(
            f"blocks of {request.block_tokens} tokens with prompts of {request.prompt_tokens}: at least one token is "
            "decoded, and one foretold"
        )
    model, layers = load_model(request.model, request.device, request.dtype)
    sha256 = weights_sha256(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{request.model}: the perplexity of running text is a decoder's: this is an encoder-decoder")
    blocks = read_blocks(
        request.text, lambda: load_tokenizer(request.model), model.config.vocab_size,
        block_tokens=request.block_tokens, most_tokens=request.tokens,
    )
    fitted = [load_fitted(path, sha256) for path in request.fitted]
    for each in fitted:
        refuse_overlap(each.windows, blocks.tokens.tolist(), f"{each.about['text']}, on which {each.kind} was fitted")
    modes, left_out = _plan(request, layers, fitted).modes(layers)
    layout = Layout(request.prompt_tokens, request.warmup_tokens, min(request.lanes, len(blocks.tokens)))
    if layout.warmup_tokens >= (request.block_tokens - 1 - layout.prompt_tokens) * (len(blocks.tokens) // layout.lanes):
        raise InputError(
            f"{request.text}: {len(blocks.tokens)} blocks on {layout.lanes} lanes leave nothing after "
            f"{layout.warmup_tokens} tokens of warm-up: give more text, fewer lanes or less warm-up"
        )
    sums = measure(model, layers, modes, blocks.tokens, layout, progress)
    layout_of_router = layers[0].layout
    return Quality(
        model=type(model).__name__,
        weights_sha256=sha256,
        layers=len(layers),
        experts=layout_of_router.n_experts,
        top_k=layout_of_router.top_k,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        device=_device_name(model),
        text=_text(blocks, layout, int(sums[0][:, TOKENS].sum())),
        fitted={each.kind: {key: each.about[key] for key in ("text", "text_sha256", "tokens")} for each in fitted},
        method=Method(
            description=intervals.METHOD, confidence=intervals.CONFIDENCE, resamples=intervals.RESAMPLES,
            seed=intervals.SEED,
        ),
        measured=[_measured(mode, each) for mode, each in zip(modes, sums, strict=True)],
        left_out=left_out,
        recorder_version=moesim.__version__,
    )


def _plan(request: Request, layers: Sequence[MoeLayer], fitted: Sequence[Fitted]) -> Plan:
    kinds = {each.kind for each in fitted}
    vectors = next((each.tensors["vectors"] for each in fitted if "vectors" in each.tensors), None)
    names = list(request.predictors) or [
        "router-input", "residual", *(["estimator", "hybrid"] if "estimator" in kinds else []),
        *([DEFAULT_VECTORS] if vectors is not None else []),
    ]
    predictors = predictors_by_name(names, layers, fitted)
    for each in predictors:
        if each.availability.layer_offset != 1 or each.reads_attention_input:
            raise InputError(f"predictor {each.name!r} does not foresee the next layer from this one's router on")
    last = len(layers) - 1
    return Plan(
        names=request.modes,
        foresights=[PredictorForesight(layers, each) for each in predictors],
        first_layers=request.first_layers or sorted({n for n in (2, last // 4, last // 2) if 1 < n <= last}),
        cache_fractions=request.cache_fractions,
        vectors=None if vectors is None else vectors.to(next(layers[0].router.parameters()).device),
    )


def _measured(mode: Mode, sums: NDArray[np.float64]) -> Measured:
    drawn = intervals.draws(len(sums))

    def per_token(column: int) -> Any:
        return lambda totals: totals[..., column] / totals[..., TOKENS]

    def perplexity(totals: Floats) -> Floats:
        return np.exp(totals[..., NLL] / totals[..., TOKENS])

    def increase(totals: Floats) -> Floats:
        return np.expm1((totals[..., NLL] - totals[..., TRUE_NLL]) / totals[..., TOKENS])

    return Measured(
        mode=mode.name,
        predictor=mode.predictor,
        parameters=mode.parameters,
        variant=mode.variant,
        cache_fraction=mode.cache_fraction,
        passes="stepped" if mode.stepped else "whole",
        perplexity=intervals.interval(sums, perplexity, drawn),
        perplexity_increase=intervals.interval(sums, increase, drawn),
        kl_nats=intervals.interval(sums, per_token(DIVERGENCE), drawn),
        top1_agreement=intervals.interval(sums, per_token(AGREEMENT), drawn),
        weight_executed=mode.weight_executed,
    )


def _text(blocks: Blocks, layout: Layout, measured: int) -> Text:
    count, length = blocks.tokens.shape
    return Text(
        source=blocks.source, sha256=blocks.sha256, tokens=blocks.tokens.size, tokens_measured=measured, blocks=count,
        block_tokens=length, prompt_tokens=layout.prompt_tokens, warmup_tokens=layout.warmup_tokens, lanes=layout.lanes,
    )


def _device_name(model: Any) -> str:
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
