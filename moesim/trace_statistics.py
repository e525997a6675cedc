"""How a router behaves over a trace: what makes routing look like that of a real model, and how well it is foreseen.

Plain functions on the arrays of a `moesim.trace.Trace`; every result is per MoE layer, so that a mean over layers is
the caller's choice. `moesim trace info` prints them for a trace file.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK_TOKENS = 8192


def overlap_with_previous_token(experts: NDArray[Any]) -> NDArray[np.float64]:
    """[L]: the share of a token's experts that the token in the row before also chose; `experts` is [T, L, K].

    Rows follow each other in the order of execution; the step from one request to the next counts like any other.
    """
    same = np.zeros(experts.shape[1], dtype=np.int64)
    for start in range(1, len(experts), _CHUNK_TOKENS):
        now = experts[start : start + _CHUNK_TOKENS]
        before = experts[start - 1 : start - 1 + len(now)]
        same += (now[..., :, None] == before[..., None, :]).any(-1).sum((0, 2))
    shares: NDArray[np.float64] = same / ((len(experts) - 1) * experts.shape[2])
    return shares


def shuffled_overlap(experts: NDArray[Any], seed: int = 0) -> NDArray[np.float64]:
    """[L]: `overlap_with_previous_token` after one random permutation of the rows: what skew alone would give."""
    return overlap_with_previous_token(experts[np.random.default_rng(seed).permutation(len(experts))])


def lru_hit_rate(experts: NDArray[Any], n_experts: int, slots: int) -> NDArray[np.float64]:
    """[L]: the hit rate of one LRU cache of `slots` experts per layer, cold start included.

    Accesses come one after the other, those of a row in the order of rising gate weight (`experts` lists the heaviest
    first). This describes the routing; how caches do under the semantics of a replay is what a sweep is for.
    """
    tokens, layers, top_k = experts.shape
    if not 1 <= slots <= n_experts:
        raise ValueError(f"{slots} slots: a layer of {n_experts} experts has 1 to {n_experts}")
    # An LRU cache holds the `slots` experts with the latest uses, so no queue need be kept: compare the times of use.
    last_use = np.full((layers, n_experts), -1, dtype=np.int64)
    rows = np.arange(layers)
    hits = np.zeros(layers, dtype=np.int64)
    accesses = np.moveaxis(experts[:, :, ::-1], 2, 1).reshape(tokens * top_k, layers)
    for time, chosen in enumerate(accesses):
        oldest_resident = np.partition(last_use, n_experts - slots, axis=1)[:, n_experts - slots]
        used = last_use[rows, chosen]
        hits += (used >= oldest_resident) & (used >= 0)
        last_use[rows, chosen] = time
    rates: NDArray[np.float64] = hits / (tokens * top_k)
    return rates


def busiest_share(experts: NDArray[Any], n_experts: int, share: float = 0.1) -> NDArray[np.float64]:
    """[L]: the share of all selections that goes to the busiest `share` of the experts (rounded to whole experts)."""
    count = max(1, round(share * n_experts))
    found = []
    for layer in range(experts.shape[1]):
        chosen = np.bincount(experts[:, layer].ravel(), minlength=n_experts)
        found.append(np.sort(chosen)[-count:].sum() / chosen.sum())
    return np.array(found)


def prediction_recall(experts: NDArray[Any], ranking: NDArray[Any], first: int | None = None) -> NDArray[np.float64]:
    """[L]: the share of a token's experts among the `first` (default: K) of a predictor's `ranking` [T, L, M].

    NaN for a layer that the predictor foresees for no token (all absent).
    """
    absent = np.iinfo(ranking.dtype).max
    foreseen = ranking[:, :, : first or experts.shape[2]]
    there = ranking[:, :, 0] != absent
    found = np.zeros(experts.shape[1])
    for start in range(0, len(experts), _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        match = (experts[part][..., :, None] == foreseen[part][..., None, :]).any(-1).mean(-1)
        found += np.where(there[part], match, 0.0).sum(0)
    counted = there.sum(0)
    recall: NDArray[np.float64] = np.full(len(found), np.nan)
    np.divide(found, counted, out=recall, where=counted > 0)
    return recall


@dataclass(frozen=True)
class Routing:
    """The statistics of one trace, averaged over layers."""

    overlap: float
    shuffled: float
    lru_quarter: float
    busiest_tenth: float


def routing(experts: NDArray[Any], n_experts: int) -> Routing:
    """Overlap with the previous token and after shuffling, LRU at a quarter of the experts, busiest tenth."""
    return Routing(
        overlap=float(overlap_with_previous_token(experts).mean()),
        shuffled=float(shuffled_overlap(experts).mean()),
        lru_quarter=float(lru_hit_rate(experts, n_experts, n_experts // 4).mean()),
        busiest_tenth=float(busiest_share(experts, n_experts).mean()),
    )
