"""Every rule of the format, broken once: the message names array, index, value and rule in one line."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from moesim import trace_file
from moesim.errors import TraceError
from moesim.trace import Prediction, Trace
from tests.trace.examples import changed, example, metadata, with_arrays

INF, NAN = float("inf"), float("nan")


def whole():
    """Tokens 0-5 are request 0, 6-11 are request 1; experts 8, top-2, three layers."""
    return example(
        scores=True, predictors={"residual": (1, 4, True), "two-ahead": (2, 3, False)}, dropped=0.0,
    )


@pytest.fixture(params=[1, 1 << 22], ids=["one row a chunk", "one chunk"])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(trace_file, "CHUNK_BYTES", request.param)


def refusal(trace):
    with pytest.raises(TraceError) as found:
        trace.validate()
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.usefixtures("chunk_bytes")
def test_the_example_breaks_no_rule():
    whole().validate()
    example(dropped=0.5).validate()


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("experts", (7, 2, 1), 8, "experts[7, 2, 1] = 8: expert ids are below 8, 255 means absent"),
        ("experts", (11, 0, 0), 254, "experts[11, 0, 0] = 254: expert ids are below 8"),
        ("experts", (5, 1, 0), 255, "experts[5, 1, 0] = 255: absent values come last in a row"),
        ("experts", (5, 1, 1), 255, "weights[5, 1, 1] = {weight}: an absent expert has 0"),
        ("weights", (3, 2, 0), NAN, "weights[3, 2, 0] = nan: it is finite and not negative"),
        ("weights", (3, 2, 0), INF, "weights[3, 2, 0] = inf: it is finite and not negative"),
        ("weights", (3, 2, 1), -0.5, "weights[3, 2, 1] = -0.5: it is finite and not negative"),
        ("weights", (3, 2, 1), 2.0, "weights[3, 2, 1] = 2.0: heaviest first"),
        ("step", (6,), 0, "step[6] = 0: steps never decrease"),
        ("step", (1,), 9, "step[2] = 1: steps never decrease"),
        ("phase", (4,), 2, "phase[4] = 2: 0 is prefill, 1 is decode"),
        ("phase", (4,), 255, "phase[4] = 255: 0 is prefill, 1 is decode"),
        ("position", (9,), 2, "position[9] = 2: the positions of request 1 increase, this one follows 2"),
        ("position", (6,), 7, "position[7] = 1: the positions of request 1 increase, this one follows 7"),
        ("request", (6,), 0, "position[6] = 0: the positions of request 0 increase, this one follows 5"),
        ("scores", (2, 1, 7), NAN, "scores[2, 1, 7] = nan: router probabilities lie between 0 and 1"),
        ("scores", (2, 1, 7), 1.5, "scores[2, 1, 7] = 1.5: router probabilities lie between 0 and 1"),
        ("scores", (2, 1, 7), -0.25, "scores[2, 1, 7] = -0.25: router probabilities lie between 0 and 1"),
        ("predicted.residual", (8, 2, 3), 9, "predicted.residual[8, 2, 3] = 9: expert ids are below 8"),
        ("predicted.residual", (8, 0, 0), 5, "predicted.residual[8, 0, 0] = 5: the first 1 layers cannot be predicted"),
        ("predicted.two-ahead", (8, 1, 2), 5, "predicted.two-ahead[8, 1, 2] = 5: the first 2 layers cannot"),
        ("predicted.residual", (8, 1, 2), 255, "predicted.residual[8, 1, 2] = 255: absent values come last in a row"),
        ("predicted.residual.scores", (8, 1, 3), 2, "predicted.residual.scores[8, 1, 3] = 2.0: heaviest first"),
        ("predicted.residual.scores", (8, 1, 0), NAN, "predicted.residual.scores[8, 1, 0] = nan: it is finite"),
        ("predicted.residual.scores", (8, 0, 0), 0.5, "predicted.residual.scores[8, 0, 0] = 0.5: an absent expert"),
    ],
)
def test_a_broken_value_is_named(name, index, value, message):
    trace = changed(whole(), name, index, value)
    message = message.format(weight=trace.weights[5, 1, 1])
    assert refusal(trace).startswith(f"example: {message}")


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("name", ["experts", "predicted.residual"])
def test_an_expert_twice_in_a_row_is_named(name):
    trace = whole()
    array = trace.arrays()[name]
    first, last = (4, 2, 0), (4, 2, array.shape[2] - 1)
    message = refusal(changed(trace, name, last, array[first]))
    assert message.startswith(f"example: {name}[4, 2, {last[2]}] = {array[first]}: the experts of a row differ")
    assert message.endswith("repeats slot 0")


def test_equal_weights_are_allowed_and_the_least_rise_is_not():
    trace = whole()
    heaviest = trace.weights[3, 2, 0]
    changed(trace, "weights", (3, 2, 1), heaviest).validate()
    above = np.nextafter(heaviest, np.float16(1))
    assert refusal(changed(trace, "weights", (3, 2, 1), above)).startswith(f"example: weights[3, 2, 1] = {above}")


@pytest.mark.usefixtures("chunk_bytes")
def test_a_request_that_only_the_metadata_know_is_named():
    trace = whole()
    listed = [*trace.metadata.requests, trace.metadata.requests[0].model_copy(update={"request": 7})]
    trace = replace(trace, metadata=trace.metadata.model_copy(update={"requests": listed}))
    assert refusal(trace) == "example: metadata.requests lists request 7: the array request lacks it"


def test_requests_may_interleave():
    trace = whole()
    order = np.array([0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11])
    arrays = {name: array[order] for name, array in trace.arrays().items()}
    arrays["step"] = np.arange(12, dtype=np.uint32) // 2
    with_arrays(trace, arrays).validate()


def test_the_file_is_named_where_there_is_one(tmp_path):
    changed(whole(), "phase", (4,), 2).save(tmp_path / "a.safetensors")
    assert refusal(Trace.load(tmp_path / "a.safetensors")).startswith(f"{tmp_path / 'a.safetensors'}: phase[4] = 2")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("experts", np.zeros((12, 3, 2), np.uint32), "experts has type uint32: expert ids are uint8 or uint16"),
        ("experts", np.zeros((12, 3), np.uint8), "experts has shape (12, 3): it is [tokens, layers, top-k], none 0"),
        ("experts", np.zeros((0, 3, 2), np.uint8), "experts has shape (0, 3, 2): it is [tokens, layers, top-k]"),
        ("experts", np.zeros((12, 4, 2), np.uint8), "experts has shape (12, 4, 2): metadata.layers = 3"),
        ("experts", np.zeros((12, 3, 1), np.uint8), "experts has shape (12, 3, 1): metadata.top_k = 2"),
        ("experts", np.zeros((11, 3, 2), np.uint8), "has shape (12, 3, 2): beside experts (11, 3, 2) it is (11, 3, 2)"),
        ("weights", np.zeros((12, 3, 2), np.float32), "weights has type float32: it is float16"),
        ("weights", np.zeros((12, 3, 8), np.float16), "weights has shape (12, 3, 8): beside experts (12, 3, 2) it is"),
        ("scores", np.zeros((12, 3, 7), np.float16), "scores has shape (12, 3, 7): beside experts (12, 3, 2) it is "
                                                     "(12, 3, 8)"),
        ("step", np.zeros(12, np.int32), "step has type int32: it is uint32"),
        ("step", np.zeros(11, np.uint32), "step has shape (11,): beside experts (12, 3, 2) it is (12,)"),
        ("request", np.zeros((12, 1), np.uint32), "request has shape (12, 1)"),
        ("position", np.zeros(12, np.uint64), "position has type uint64: it is uint32"),
        ("phase", np.zeros(12, np.uint32), "phase has type uint32: it is uint8"),
        ("predicted.residual", np.zeros((12, 3, 4), np.uint16), "predicted.residual has type uint16: it is uint8"),
        ("predicted.residual", np.zeros((12, 2, 4), np.uint8), "predicted.residual has shape (12, 2, 4)"),
        ("predicted.residual", np.zeros((12, 3), np.uint8), "predicted.residual has shape (12, 3): it is [tokens"),
        ("predicted.residual", np.zeros((12, 3, 9), np.uint8), "with 1 to 8 ranked"),
        ("predicted.residual.scores", np.zeros((12, 3, 3), np.float16), "predicted.residual.scores has shape"),
    ],
)
def test_a_wrong_type_or_shape_is_named(name, array, message):
    trace = whole()
    with pytest.raises(TraceError, match=re.escape(message)):
        with_arrays(trace, trace.arrays() | {name: array})


def test_predictions_and_their_metadata_belong_together():
    trace = whole()
    with pytest.raises(TraceError, match=r"predicted\.other: metadata\.predictors does not list 'other'"):
        replace(trace, predicted={**trace.predicted, "other": trace.predicted["residual"]})
    with pytest.raises(TraceError, match=r"predictors lists 'residual': there is no array predicted\.residual"):
        replace(trace, predicted={"two-ahead": trace.predicted["two-ahead"]})


def test_u8_ids_cannot_name_256_experts():
    with pytest.raises(TraceError, match=r"metadata.experts = 256: uint8 ids hold at most 255"):
        replace(example(), metadata=metadata(experts=256))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"top_k": 9}, "top_k is 9, but a layer has only 8 experts"),
        ({"moe_layers": [0, 1]}, "moe_layers lists 2 layers, layers says 3"),
        ({"moe_layers": [0, 2, 1]}, "moe_layers ascend from 0 or more"),
        ({"moe_layers": [-1, 2, 3]}, "moe_layers ascend from 0 or more"),
        ({"requests": [{"request": 1, "kind": "a"}, {"request": 1, "kind": "b"}]}, "requests lists request 1 twice"),
        ({"predictors": {"a.scores": {"layer_offset": 1, "point": "", "description": ""}}}, "'.scores' names its"),
        ({"synthetic": True}, "the name of a synthetic trace starts with 'synthetic'"),
        ({"layers": 0}, "layers"),
        ({"experts": "eight"}, "experts"),
        ({"decoding": "beam"}, "'teacher-forced', 'greedy', 'sampled' or 'unknown'"),
        ({"licence": None}, "licence"),
        ({"modle": "x"}, "unknown key: did you mean model?"),
        ({"format": "moesim-trace/2"}, "metadata.format = 'moesim-trace/2': this reads 'moesim-trace/1'"),
        ({"experts": 8.0}, "experts = 8.0"),
    ],
)
def test_bad_metadata_are_named(tmp_path, update, message):
    trace = example()
    fields = trace.metadata.model_dump(mode="json") | update
    path = tmp_path / "a.safetensors"
    arrays = {name: [array] for name, array in trace.arrays().items()}
    trace_file.write_file(path, json.dumps(fields), arrays)
    with pytest.raises(TraceError) as found:
        Trace.load(path)
    assert str(found.value).startswith(f"{path}: metadata")
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_absent_predictions_of_a_whole_token_are_allowed():
    trace = whole()
    ranking = trace.predicted["residual"].ranking.copy()
    ranking[3] = 255
    replace(trace, predicted={**trace.predicted, "residual": Prediction(ranking)}).validate()
