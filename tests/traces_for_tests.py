"""Small traces with a known shape, made from a seed: skewed, and like their predecessor, as real routing is."""

import numpy as np

from moesim.trace import DECODE, PREFILL, Availability, Prediction, Trace, TraceMetadata, id_dtype

PREDICTOR = "residual+default-vectors"


def metadata(layers, experts, top_k, predictors=None, name="test", **more):
    return TraceMetadata(
        name=name, model="test", layers=layers, experts=experts, top_k=top_k, moe_layers=list(range(layers)),
        predictors=predictors or {}, dataset="none", tokenizer="none", decoding="unknown", recorder="test",
        recorder_version="0", licence="Apache-2.0", source="test", **more,
    )


def random_trace(tokens=20, layers=3, experts=8, top_k=2, *, prompt=0, seed=0, recall=0.7, weights=True):
    """A request of `prompt` prefill tokens and then decode tokens; predictions for every layer but the first."""
    random = np.random.default_rng(seed)
    liking = random.gumbel(size=(layers, experts))
    score = liking + random.gumbel(size=(tokens, layers, experts))
    score[1:] += 0.7 * score[:-1]
    dtype = id_dtype(experts)
    order = np.argsort(-score, axis=-1)
    chosen = order[:, :, :top_k].astype(dtype)
    gate = np.sort(random.random((tokens, layers, top_k)), axis=-1)[:, :, ::-1].astype(np.float16)
    guess = np.where(random.random(score.shape) < recall, score, random.gumbel(size=score.shape))
    ranking = np.argsort(-guess, axis=-1)[:, :, : min(experts, top_k + 1)].astype(dtype)
    ranking[:, 0] = np.iinfo(dtype).max
    step = np.maximum(np.arange(tokens) - max(prompt - 1, 0), 0).astype(np.uint32)
    available = Availability(layer_offset=1, point="after attention", description="a noisy copy of the truth")
    return Trace(
        experts=chosen, weights=gate if weights else None, step=step, request=np.zeros(tokens, np.uint32),
        position=np.arange(tokens, dtype=np.uint32),
        phase=np.where(np.arange(tokens) < prompt, PREFILL, DECODE).astype(np.uint8),
        metadata=metadata(layers, experts, top_k, {PREDICTOR: available}),
        predicted={PREDICTOR: Prediction(ranking)},
    )


def one_expert_events(trace):
    """The same accesses in events of one expert each, the heaviest of an event last: what a plain cache sees."""
    tokens, layers, top_k = trace.experts.shape
    numbered = trace.experts[:, :, ::-1].astype(np.uint16) + (
        np.arange(layers, dtype=np.uint16)[None, :, None] * trace.n_experts
    )
    count = tokens * layers * top_k
    row = np.arange(count, dtype=np.uint32)
    return Trace(
        experts=numbered.reshape(count, 1, 1), weights=None, step=row, request=np.zeros(count, np.uint32), position=row,
        phase=np.full(count, DECODE, np.uint8), metadata=metadata(1, layers * trace.n_experts, 1),
    )


def batched_trace(tokens=60, layers=3, experts=8, top_k=2, *, batch=3, dropped=0.0, seed=0, weights=True):
    """Decode steps of `batch` requests each; a share of the choices, the lightest of a row, is absent."""
    trace = random_trace(tokens, layers, experts, top_k, seed=seed, weights=weights)
    chosen, gate = trace.experts.copy(), None if trace.weights is None else trace.weights.copy()
    gone = np.random.default_rng(seed).random((tokens, layers)) < dropped
    chosen[gone, -1] = trace.absent
    if gate is not None:
        gate[gone, -1] = 0
    row = np.arange(tokens, dtype=np.uint32)
    return Trace(
        experts=chosen, weights=gate, step=row // np.uint32(batch), request=row % np.uint32(batch),
        position=row // np.uint32(batch), phase=np.full(tokens, DECODE, np.uint8),
        metadata=metadata(layers, experts, top_k),
    )
