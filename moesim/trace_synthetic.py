"""Seeded traces of any shape: routing that has a wanted skew and a wanted overlap with the token before.

For shapes of which no recording is at hand. Each layer has its own popularity of experts, a power law over a
random order. A token keeps each expert of the token before with one fixed probability and draws the rest of its
top-k from the popularity, without replacement: every expert arrives after an exponential time with its popularity
as the rate, and the first K are chosen (Efraimidis and Spirakis 2006). Two numbers, the exponent and the probability,
are fitted until the finished trace itself has the wanted statistics: each round corrects its aim by what the last
draw missed. No text stands behind such a trace, and everything that shows it says so.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import moesim
from moesim.errors import TraceError
from moesim.trace import DECODE, PREFILL, Availability, Prediction, Request, Trace, TraceMetadata, id_dtype
from moesim.trace_statistics import busiest_share, overlap_with_previous_token

TOLERANCE = 0.005
"""How far overlap and busiest share of a finished trace may lie from what was asked for."""
BUSIEST = 0.1
"""Skew is the share of all selections that falls on this share of a layer's experts."""
PREDICTOR = "synthetic"
_ROUNDS = 12
_CURVE_TOKENS = 1024


@dataclass(frozen=True)
class SyntheticSpec:
    """What a synthetic trace shall be. `model` and `moe_layers` are labels: whose shape it borrows."""

    layers: int
    experts: int
    top_k: int
    overlap: float
    """Share of a token's experts that the row before also chose, mean over layers."""
    busiest: float
    """Share of the selections that goes to the busiest tenth of the experts, mean over layers."""
    decode_tokens: int = 1000
    """Of each request."""
    prompt_tokens: int = 0
    """Of each request, in one prefill step."""
    requests: int = 1
    seed: int = 0
    model: str = ""
    moe_layers: tuple[int, ...] = ()
    recall: float | None = None
    """Recall at top-k of the predictor channel `synthetic`; None for no channel."""

    @property
    def busiest_experts(self) -> int:
        """How many experts are the busiest tenth: at least one."""
        return max(1, round(BUSIEST * self.experts))


@dataclass(frozen=True)
class Reached:
    """What a finished trace has, by the same functions that `moesim trace info` uses."""

    overlap: float
    busiest: float


def synthesize(spec: SyntheticSpec) -> tuple[Trace, Reached]:
    """Draw the trace; the same spec gives the same trace.

    Raises:
        TraceError: no trace can be so, or none that this process draws; the line says what can be reached.
    """
    _check(spec)
    experts, reached = _fit(spec)
    requests, length = spec.requests, spec.prompt_tokens + spec.decode_tokens
    position = np.tile(np.arange(length, dtype=np.uint32), requests)
    decoding = position >= spec.prompt_tokens
    starts_step = decoding | (position == 0)
    predicted, predictors = {}, {}
    if spec.recall is not None:
        predicted[PREDICTOR] = Prediction(_predict(spec, experts))
        predictors[PREDICTOR] = Availability(
            layer_offset=1, point="drawn beside the routing",
            description=f"the true experts with recall {spec.recall:g} at top-{spec.top_k}, wrong ones at random",
        )
    shape = f"{spec.layers}x{spec.experts} top-{spec.top_k}"
    trace = Trace(
        experts=experts,
        weights=_weights(spec, experts.shape),
        step=(np.cumsum(starts_step) - 1).astype(np.uint32),
        request=np.repeat(np.arange(requests, dtype=np.uint32), length),
        position=position,
        phase=np.where(decoding, DECODE, PREFILL).astype(np.uint8),
        predicted=predicted,
        metadata=TraceMetadata(
            name=f"synthetic-{spec.model or shape.replace(' ', '-')}",
            model=f"none: the shape of {spec.model}" if spec.model else f"none: shape {shape}",
            layers=spec.layers, experts=spec.experts, top_k=spec.top_k,
            moe_layers=list(spec.moe_layers) or list(range(spec.layers)),
            predictors=predictors, dataset="none", tokenizer="none", decoding="unknown",
            recorder="moesim trace synth", recorder_version=moesim.__version__,
            licence="none: random numbers", source=f"a seeded random process, seed {spec.seed}", synthetic=True,
            requests=[
                Request(request=number, kind="synthetic", prompt_tokens=spec.prompt_tokens)
                for number in range(requests)
            ],
            notes="Synthetic: no model routed these tokens and no text stands behind them.",
            provenance={"synthetic": {
                "asked": {**asdict(spec), "moe_layers": list(spec.moe_layers)}, "reached": asdict(reached),
            }},
        ),
    )
    return trace, reached


def _check(spec: SyntheticSpec) -> None:
    """Refuse what no trace of this shape can have."""
    for name in ("layers", "experts", "top_k", "decode_tokens", "requests"):
        if getattr(spec, name) < 1:
            raise TraceError(f"{name} = {getattr(spec, name)}: it is at least 1")
    if spec.prompt_tokens < 0 or spec.seed < 0:
        raise TraceError(f"prompt_tokens = {spec.prompt_tokens}, seed = {spec.seed}: they are at least 0")
    if spec.top_k > spec.experts:
        raise TraceError(f"top_k = {spec.top_k}: a layer has only {spec.experts} experts")
    if spec.requests * (spec.prompt_tokens + spec.decode_tokens) < 2:
        raise TraceError("one token has no token before it: ask for at least two")
    id_dtype(spec.experts)
    for name in ("overlap", "busiest", "recall"):
        value = getattr(spec, name)
        if value is not None and not 0 <= value <= 1:
            raise TraceError(f"{name} = {value}: it is a share from 0 to 1")
    least, most = spec.busiest_experts / spec.experts, min(1.0, spec.busiest_experts / spec.top_k)
    if not least <= spec.busiest <= most:
        raise TraceError(
            f"busiest = {spec.busiest:g}: with {spec.experts} experts, top-{spec.top_k}, the {spec.busiest_experts} "
            f"busiest take {least:.3f} to {most:.3f} of the selections"
        )
    if spec.recall is not None and spec.recall < 1 and spec.experts < 2 * spec.top_k:
        raise TraceError(
            f"recall = {spec.recall:g}: {spec.experts} experts leave fewer than {spec.top_k} wrong ones to predict"
        )


def _fit(spec: SyntheticSpec) -> tuple[NDArray[Any], Reached]:
    """Draw until the drawn trace has the wanted statistics."""
    curve = _SkewCurve(spec)
    aim_busiest, aim_overlap = spec.busiest, spec.overlap
    keep_before = -1.0
    best: tuple[float, NDArray[Any], Reached] | None = None
    for _ in range(_ROUNDS):
        exponent = curve.exponent(aim_busiest)
        # what is not kept is drawn afresh and repeats by chance
        by_chance = curve.overlap_by_chance(exponent)
        keep = float(np.clip((aim_overlap - by_chance) / max(1 - by_chance, 1e-9), 0.0, 1.0))
        experts = _draw(spec, exponent, keep)
        reached = Reached(
            overlap=float(overlap_with_previous_token(experts).mean()),
            busiest=float(busiest_share(experts, spec.experts, BUSIEST).mean()),
        )
        miss = max(abs(reached.overlap - spec.overlap), abs(reached.busiest - spec.busiest))
        if best is None or miss < best[0]:
            best = miss, experts, reached
        at_an_end = keep in (0.0, 1.0) and keep == keep_before
        if miss <= TOLERANCE / 2 or (at_an_end and abs(reached.busiest - spec.busiest) <= TOLERANCE / 2):
            break
        keep_before = keep
        aim_busiest = float(np.clip(aim_busiest + spec.busiest - reached.busiest, 0.0, 1.0))
        aim_overlap = float(np.clip(aim_overlap + spec.overlap - reached.overlap, 0.0, 1.0))
    assert best is not None
    miss, experts, reached = best
    if miss > TOLERANCE:
        raise TraceError(
            f"overlap {spec.overlap:g} with busiest share {spec.busiest:g} cannot be reached: the nearest that "
            f"{len(experts)} tokens of {spec.layers}x{spec.experts} top-{spec.top_k} gave is overlap "
            f"{reached.overlap:.3f} with busiest share {reached.busiest:.3f}"
        )
    return experts, reached


class _SkewCurve:
    """Busiest share and chance overlap by exponent, for independent tokens of one layer: a table to aim with."""

    def __init__(self, spec: SyntheticSpec) -> None:
        times = np.random.default_rng([spec.seed, 1]).standard_exponential((_CURVE_TOKENS, spec.experts))
        rank = np.arange(1.0, spec.experts + 1)
        self._exponents = np.concatenate([[0.0], np.geomspace(0.03, 32.0, 48)])
        shares, overlaps = [], []
        for exponent in self._exponents:
            chosen = np.argpartition(times * rank**exponent, spec.top_k - 1, axis=1)[:, : spec.top_k]
            inclusion = np.bincount(chosen.ravel(), minlength=spec.experts) / _CURVE_TOKENS
            shares.append(inclusion[: spec.busiest_experts].sum() / spec.top_k)
            overlaps.append((inclusion**2).sum() / spec.top_k)
        self._shares = np.maximum.accumulate(shares)
        self._overlaps = np.array(overlaps)

    def exponent(self, busiest: float) -> float:
        """The exponent whose busiest tenth takes the share `busiest`."""
        return float(np.interp(busiest, self._shares, self._exponents))

    def overlap_by_chance(self, exponent: float) -> float:
        """Share of a token's experts that an independent token also chooses."""
        return float(np.interp(exponent, self._exponents, self._overlaps))


def _draw(spec: SyntheticSpec, exponent: float, keep: float) -> NDArray[Any]:
    """[T, L, K]: all requests side by side, one position after another; the same random numbers at every call."""
    generator = np.random.default_rng([spec.seed, 0])
    length = spec.prompt_tokens + spec.decode_tokens
    side_by_side = (spec.requests, spec.layers, spec.experts)
    rank = 1.0 + np.argsort(generator.random((spec.layers, spec.experts)), axis=1)
    mean_time = rank**exponent
    chosen = np.zeros(side_by_side, np.bool_)
    experts = np.empty((spec.requests, length, spec.layers, spec.top_k), id_dtype(spec.experts))
    for position in range(length):
        arrival = generator.standard_exponential(side_by_side) * mean_time
        kept = chosen & (generator.random(side_by_side, np.float32) < keep)
        ids = np.argpartition(np.where(kept, -1.0, arrival), spec.top_k - 1, axis=2)[..., : spec.top_k]
        heaviest_first = np.argsort(np.take_along_axis(arrival, ids, axis=2), axis=2)
        ids = np.take_along_axis(ids, heaviest_first, axis=2)
        experts[:, position] = ids
        chosen[...] = False
        np.put_along_axis(chosen, ids, True, axis=2)
    return experts.reshape(-1, spec.layers, spec.top_k)


def _weights(spec: SyntheticSpec, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Gate weights, heaviest first: a unit stick broken at random into K pieces."""
    drawn = np.random.default_rng([spec.seed, 2]).standard_exponential(shape, np.float32)
    drawn = np.flip(np.sort(drawn, axis=2), axis=2)
    weights: NDArray[np.float16] = (drawn / drawn.sum(axis=2, keepdims=True)).astype(np.float16)
    return weights


def _predict(spec: SyntheticSpec, experts: NDArray[Any]) -> NDArray[Any]:
    """[T, L, K]: the true experts, of which so many are replaced by wrong ones that the recall is met per layer."""
    assert spec.recall is not None
    generator = np.random.default_rng([spec.seed, 3])
    ranking = experts.copy()
    ranking[:, 0] = np.iinfo(experts.dtype).max  # layer 0 has no layer before it
    tokens, _, top_k = experts.shape
    wrong_count = round((1 - spec.recall) * tokens * top_k)
    for layer in range(1, spec.layers):
        truth = experts[:, layer]
        keys = generator.random((tokens, spec.experts), np.float32)
        np.put_along_axis(keys, truth.astype(np.int64), np.float32(2), axis=1)  # true experts sort last
        others = np.argsort(keys, axis=1)[:, :top_k]
        wrong = np.zeros(tokens * top_k, np.bool_)
        wrong[generator.permutation(tokens * top_k)[:wrong_count]] = True
        ranking[:, layer] = np.where(wrong.reshape(tokens, top_k), others, truth)
    return ranking
