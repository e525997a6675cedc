"""How much of what the router chose a predictor had foreseen: the definitions, exactly.

For token t and MoE layer l let C be the experts that the router chose (absent slots left out), w their gate weights,
and R_n the first n entries of the predictor's ranking. The pair (t, l) is *foreseen* if C is not empty and the
ranking names at least one expert. For every foreseen pair:

    recall@n            |C ∩ R_n| / |C|
    recall@1.5k         the same with n = ceil(1.5 k), the overfetch of SpecMD (arXiv 2602.03921)
    weight-mass recall  sum of w over C ∩ R_k / sum of w over C
    recall of slot j    1 if the j-th heaviest expert of C is in R_k, else 0

k is the number of experts that the router chooses. A layer's figure is the mean over its foreseen tokens; the overall
figure is the mean over the layers that are foreseen at all, each layer counting once. Pairs that nobody foresaw do not
lower a recall; `coverage`, the share of pairs that were foreseen, stands beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.trace import Prediction, Trace

PerLayer = NDArray[np.float64]
_CHUNK_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Recall:
    """The recall of one predictor. NaN: the layer is never foreseen, or the trace lacks what the figure needs."""

    tokens: NDArray[np.int64]
    """[L]: the foreseen tokens of each layer."""
    coverage: float
    """Foreseen pairs over all pairs in which the router chose an expert."""
    at_k: PerLayer
    """[L]."""
    at_1_5_k: PerLayer
    """[L]; NaN where fewer than ceil(1.5 k) experts are ranked, and not all."""
    weight_mass: PerLayer
    """[L]; NaN where the trace has no gate weights."""
    by_slot: PerLayer
    """[L, K]: recall of each slot, heaviest first; NaN for a slot that was never filled."""


def overfetched(top_k: int) -> int:
    """ceil(1.5 k)."""
    return ceil(1.5 * top_k)


def overall(per_layer: PerLayer) -> float | None:
    """The mean over the layers that are foreseen; None if there is none."""
    known = per_layer[~np.isnan(per_layer)]
    return float(known.mean()) if known.size else None


def measure_recall(trace: Trace, prediction: Prediction, counted: NDArray[np.bool_] | None = None) -> Recall:
    """Recall of `prediction` over the rows of `trace` for which `counted` [T] is true (default: all).

    A ranking with fewer than k entries is measured as it stands: experts beyond its end are not foreseen.
    """
    layers, top_k = trace.layers, trace.top_k
    ranked = prediction.ranking.shape[-1]
    tokens, chosen_pairs = np.zeros(layers, np.int64), 0
    at_k, at_more, mass = np.zeros(layers), np.zeros(layers), np.zeros(layers)
    hit_slots, filled_slots = np.zeros((layers, top_k)), np.zeros((layers, top_k))
    for rows in _row_chunks(trace.tokens, counted):
        chosen, ranking = trace.experts[rows], prediction.ranking[rows]
        filled = chosen != trace.absent
        routed = filled.any(-1)
        foreseen = routed & (ranking[..., 0] != trace.absent)
        chosen_pairs += int(routed.sum())
        tokens += foreseen.sum(0)
        counted_slots = filled & foreseen[..., None]
        hits = _named(chosen, ranking[..., :top_k]) & counted_slots
        more = _named(chosen, ranking[..., : overfetched(top_k)]) & counted_slots
        filled_slots += counted_slots.sum(0)
        hit_slots += hits.sum(0)
        at_k += _share(hits, counted_slots).sum(0)
        at_more += _share(more, counted_slots).sum(0)
        if trace.weights is not None:
            weights = trace.weights[rows].astype(np.float64)
            mass += _share(hits * weights, counted_slots * weights).sum(0)
    return Recall(
        tokens=tokens,
        coverage=float(tokens.sum() / chosen_pairs) if chosen_pairs else 0.0,
        at_k=_divided(at_k, tokens),
        at_1_5_k=_divided(at_more, tokens if ranked >= min(overfetched(top_k), trace.n_experts) else 0 * tokens),
        weight_mass=_divided(mass, tokens if trace.weights is not None else 0 * tokens),
        by_slot=_divided(hit_slots, filled_slots),
    )


def _row_chunks(tokens: int, counted: NDArray[np.bool_] | None) -> Iterator[NDArray[np.intp]]:
    rows = np.arange(tokens) if counted is None else np.flatnonzero(counted)
    for start in range(0, len(rows), _CHUNK_TOKENS):
        yield rows[start : start + _CHUNK_TOKENS]


def _named(chosen: NDArray[Any], ranking: NDArray[Any]) -> NDArray[np.bool_]:
    """[T, L, K]: whether each chosen expert is anywhere in `ranking` [T, L, n]."""
    named: NDArray[np.bool_] = (chosen[..., :, None] == ranking[..., None, :]).any(-1)
    return named


def _share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over the slots divided; 0 where the whole is 0."""
    return _divided(part.sum(-1), whole.sum(-1), 0.0)


def _divided(sums: NDArray[Any], counts: NDArray[Any], empty: float = np.nan) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.full(np.shape(sums), empty)
    np.divide(sums, counts, out=result, where=np.asarray(counts) > 0)
    return result
