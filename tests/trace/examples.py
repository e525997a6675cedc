"""Traces that break no rule, of any shape: the ground that the tests of this folder stand on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.trace import Prediction, Trace, TraceMetadata, id_dtype


def metadata(**changed: Any) -> TraceMetadata:
    """Metadata of a trace with three MoE layers, eight experts, top-2."""
    fields: dict[str, Any] = {
        "name": "example", "model": "tiny", "layers": 3, "experts": 8, "top_k": 2, "moe_layers": [1, 2, 3],
        "dataset": "none", "tokenizer": "bytes", "decoding": "greedy", "recorder": "by hand", "recorder_version": "1",
        "licence": "CC0-1.0", "source": "this test",
    }
    return TraceMetadata(**(fields | changed))


def example(
    *, tokens: int = 12, layers: int = 3, experts: int = 8, top_k: int = 2, requests: int = 2, weights: bool = True,
    scores: bool = False, predictors: dict[str, tuple[int, int, bool]] | None = None, dropped: float = 0.0,
    seed: int = 0,
) -> Trace:
    """A valid trace. `predictors` maps a name to (layer_offset, experts ranked, with scores)."""
    random = np.random.default_rng(seed)
    dtype = id_dtype(experts)
    absent = np.iinfo(dtype).max

    def ids(count: int) -> NDArray[Any]:
        return random.random((tokens, layers, experts)).argsort(-1)[..., :count].astype(dtype)

    def falling(count: int) -> NDArray[np.float16]:
        return -np.sort(-random.random((tokens, layers, count)), -1).astype(np.float16)

    chosen, weight = ids(top_k), falling(top_k)
    # a dropped token keeps some of its first choices, or none
    keep = np.where(random.random((tokens, layers)) < dropped, random.integers(0, top_k, (tokens, layers)), top_k)
    gone = np.arange(top_k) >= keep[..., None]
    chosen[gone], weight[gone] = absent, 0
    predicted, listed = {}, {}
    for name, (offset, ranked, with_scores) in (predictors or {}).items():
        ranking, values = ids(ranked), falling(ranked)
        ranking[:, :offset], values[:, :offset] = absent, 0
        predicted[name] = Prediction(ranking, values if with_scores else None)
        listed[name] = {"layer_offset": offset, "point": "after attention", "description": "example"}
    request = np.sort(np.arange(tokens) % requests).astype(np.uint32)
    position = np.array([np.count_nonzero(request[:row] == request[row]) for row in range(tokens)], np.uint32)
    phase = (position > 1).astype(np.uint8)
    # the prefill tokens of a request share a step
    step = (np.cumsum((phase == 1) | (position == 0)) - 1).astype(np.uint32)
    return Trace(
        experts=chosen, weights=weight if weights else None, step=step, request=request, position=position, phase=phase,
        scores=random.random((tokens, layers, experts)).astype(np.float16) if scores else None, predicted=predicted,
        metadata=metadata(
            layers=layers, experts=experts, top_k=top_k, moe_layers=list(range(layers)), predictors=listed,
            requests=[{"request": int(n), "kind": f"kind-{n % 2}"} for n in np.unique(request)],
        ),
    )


@st.composite
def traces(draw: Callable[..., Any], max_tokens: int = 12) -> Trace:
    """Valid traces of small shapes with any of the optional arrays, u8 and u16."""
    experts = draw(st.sampled_from([1, 2, 5, 8, 254, 255, 256, 300]))
    tokens = draw(st.integers(1, max_tokens))
    layers = draw(st.integers(1, 3))
    predictor = st.tuples(st.integers(0, layers), st.integers(1, min(experts, 4)), st.booleans())
    return example(
        tokens=tokens, layers=layers, experts=experts, top_k=draw(st.integers(1, min(experts, 4))),
        requests=draw(st.integers(1, 3)), weights=draw(st.booleans()), scores=draw(st.booleans()),
        predictors=draw(st.dictionaries(st.sampled_from(["residual", "router-input", "é/x"]), predictor, max_size=2)),
        dropped=draw(st.sampled_from([0.0, 0.3])), seed=draw(st.integers(0, 99)),
    )


def changed(trace: Trace, name: str, index: tuple[int, ...], value: float) -> Trace:
    """The trace with one value changed: `name` as in the file."""
    arrays = {key: array.copy() for key, array in trace.arrays().items()}
    arrays[name][index] = value
    return with_arrays(trace, arrays)


def with_arrays(trace: Trace, arrays: dict[str, NDArray[Any]]) -> Trace:
    """The trace with other arrays, named as in the file."""
    predicted = {
        name: Prediction(arrays[f"predicted.{name}"], arrays.get(f"predicted.{name}.scores"))
        for name in trace.predicted
    }
    plain = {name: array for name, array in arrays.items() if not name.startswith("predicted.")}
    return replace(trace, predicted=predicted, path=None, mapping=None, **plain)


def assert_equal(one: Trace, two: Trace) -> None:
    """Same arrays, types and metadata."""
    assert one.metadata == two.metadata
    assert one.arrays().keys() == two.arrays().keys()
    for name, array in one.arrays().items():
        other = two.arrays()[name]
        assert array.dtype == other.dtype, name
        np.testing.assert_array_equal(array, other, err_msg=name)
