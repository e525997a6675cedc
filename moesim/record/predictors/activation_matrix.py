"""Activation-matrix match (MoE-Infinity, arXiv 2401.14361): the request that used experts most alike, done before.

    A        [L, E], how often the tokens of this request so far chose each expert; the present pass counts on the
             layers that it has run
    M_i      the same of an earlier request that has ended: the collection
    match    i* = argmax_i, mean over layers of cosine(A_l, M_i,l); layers without a count in A contribute 0
    foreseen for layer l = the experts of M_i*,l by their counts, ties by lower id, those never used left out

The paper prefetches in the order of probability × (1 − distance / L): that orders different layers, not the experts of
one. Known one layer ahead, after the router; the pass itself tells most where a request has only begun. Requests before
the first has ended are not foreseen, and a trace of one request not at all. When the collection is full, the entry that
was matched least often gives way, the older one of equals, as in the authors' code.
"""

import numpy as np
from numpy.typing import NDArray

from moesim.record.predictors.passes import request_passes
from moesim.record.predictors.recall import overfetched
from moesim.trace import Availability, ExpertIds, Prediction, Trace

NAME = "activation-matrix"
AVAILABILITY = Availability(
    layer_offset=1,
    point="after the router",
    description="the layer's most used experts in the ended request whose use of experts is nearest by cosine "
    "(MoE-Infinity, arXiv 2401.14361)",
)
CAPACITY = 1000


class _Collection:
    """Matrices of ended requests, by rows of length one, and the ranking that each layer of them gives."""

    def __init__(self, ranked: int, absent: int, capacity: int) -> None:
        self._ranked, self._absent, self._capacity = ranked, absent, capacity
        self.rows: NDArray[np.float64] = np.zeros((0, 0, 0))
        self.rankings: list[NDArray[np.int64]] = []
        self.scores: list[NDArray[np.float64]] = []
        self.matches: list[int] = []

    def add(self, counts: NDArray[np.int64]) -> None:
        if len(self.rows) == self._capacity:
            least = self.matches.index(min(self.matches))
            self.rows = np.delete(self.rows, least, axis=0)
            for kept in (self.rankings, self.scores, self.matches):
                del kept[least]
        order = np.argsort(-counts, axis=1, kind="stable")[:, : self._ranked]
        used = np.take_along_axis(counts, order, axis=1)
        row = _unit_rows(counts)[None]
        self.rows = np.concatenate([self.rows, row]) if len(self.rows) else row
        self.rankings.append(np.where(used > 0, order, self._absent))
        self.scores.append(used / np.maximum(1, counts.sum(1, keepdims=True)))
        self.matches.append(0)

    def cosines(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """[entries, L]."""
        found: NDArray[np.float64] = np.einsum("ile,le->il", self.rows, _unit_rows(counts))
        return found


def predict(trace: Trace, capacity: int = CAPACITY) -> Prediction:
    """The prediction for every row of `trace`; layer 0 and requests with nothing before them are absent."""
    experts = np.asarray(trace.experts)
    ranked = min(overfetched(trace.top_k), trace.n_experts)
    ranking = np.full((*experts.shape[:2], ranked), trace.absent, experts.dtype)
    scores = np.zeros(ranking.shape, np.float16)
    request = np.asarray(trace.request)
    last_row = {int(owner): int(row) for row, owner in enumerate(request)}
    collection = _Collection(ranked, trace.absent, capacity)
    counts: dict[int, NDArray[np.int64]] = {}
    for requests in request_passes(trace):
        ended = []
        for owner, rows in requests:
            before = counts.get(owner, np.zeros((trace.layers, trace.n_experts), np.int64))
            after = before + _counts(experts[rows], trace.n_experts, trace.absent)
            if len(collection.rows):
                best = _matches(collection.cosines(before), collection.cosines(after))
                for layer in range(1, trace.layers):
                    ranking[rows, layer] = collection.rankings[best[layer]][layer]
                    scores[rows, layer] = collection.scores[best[layer]][layer]
                    collection.matches[best[layer]] += 1
            counts[owner] = after
            if last_row[owner] in rows:
                ended.append(owner)
        for owner in ended:
            collection.add(counts.pop(owner))
    return Prediction(ranking, scores)


def _matches(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.intp]:
    """[L]: the best entry for each layer, of cosines [entries, L] with the pass counted on the layers before it."""
    run = np.cumsum(after, axis=1) - after
    to_come = np.cumsum(before[:, ::-1], axis=1)[:, ::-1]
    best: NDArray[np.intp] = np.argmax(run + to_come, axis=0)
    return best


def _counts(experts: ExpertIds, n_experts: int, absent: int) -> NDArray[np.int64]:
    layers = experts.shape[1]
    found = np.zeros((layers, absent + 1), np.int64)
    for layer in range(layers):
        found[layer] = np.bincount(experts[:, layer].ravel(), minlength=absent + 1)
    return found[:, :n_experts]


def _unit_rows(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    length = np.linalg.norm(counts, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(counts, length, out=np.zeros(counts.shape), where=length > 0)
    return unit
