"""The experts that are used most: one ranking per layer, the same for every token.

    foreseen for layer l = the experts of layer l by how often the first half of the trace chose them

What a placement decided once, offline, knows; Fiddler (arXiv 2402.07033) chooses by such counts what stays on the GPU.
Fitted on the steps of the first half of the rows, ties by lower id; foreseen are the rows after it alone, so that no
row is judged by a count that it is part of. Known before the pass begins.
"""

import numpy as np

from moesim.record.predictors.recall import overfetched
from moesim.trace import Availability, Prediction, Trace

NAME = "static-frequency"
AVAILABILITY = Availability(
    layer_offset=0,
    point="before the pass begins",
    description="the experts of the layer by how often the first half of the trace chose them; foreseen: the rest",
)


def predict(trace: Trace) -> Prediction:
    """The prediction for every row of `trace`; the rows that were counted, and experts never used, are absent."""
    experts, step = np.asarray(trace.experts), np.asarray(trace.step)
    ranking = np.full((*experts.shape[:2], min(overfetched(trace.top_k), trace.n_experts)), trace.absent, experts.dtype)
    scores = np.zeros(ranking.shape, np.float16)
    # A step that the middle cuts is counted whole: its tokens belong together.
    fitted = int(np.searchsorted(step, step[(len(step) - 1) // 2], side="right"))
    for layer in range(trace.layers):
        counts = np.bincount(experts[:fitted, layer].ravel(), minlength=trace.absent + 1)[: trace.n_experts]
        order = np.argsort(-counts, kind="stable")[: ranking.shape[-1]]
        used = counts[order] > 0
        ranking[fitted:, layer] = np.where(used, order, trace.absent)
        scores[fitted:, layer] = counts[order] / max(1, counts.sum())
    return Prediction(ranking, scores)
