"""Predictions that a trace gives away itself, against their rules worked out token by token."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.record.predictors import activation_matrix, previous_token, static_frequency
from moesim.record.predictors.recall import measure_recall, overall
from moesim.trace import DECODE, PREFILL, Prediction, Trace
from moesim.trace_import import import_trace
from tests.traces_for_tests import metadata

LAYERS, EXPERTS, TOP_K = 3, 7, 2
REAL_TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Requests of two prefill tokens and some decode tokens, two of them side by side, the last alone."""
    rows = []  # step, request, position, phase
    for first, pair in ((0, (0, 1)), (10, (2, 3)), (20, (4,)), (30, (5,))):
        rows += [(first, request, position, PREFILL) for request in pair for position in (0, 1)]
        rows += [
            (first + at, request, 1 + at, DECODE)
            for at in range(1, 6) for request in pair if at < 5 - request % 2
        ]
    random = np.random.default_rng(4)
    skew = random.dirichlet(np.full(EXPERTS, 0.7), (3, LAYERS))
    experts = np.array([
        [random.choice(EXPERTS, TOP_K, replace=False, p=skew[request % 3, layer]) for layer in range(LAYERS)]
        for _, request, _, _ in rows
    ], np.uint8)
    experts[5, 1, 1] = 255
    step, request, position, phase = np.array(rows).T
    made = Trace(
        experts=experts, weights=None, step=step.astype(np.uint32), request=request.astype(np.uint32),
        position=position.astype(np.uint32), phase=phase.astype(np.uint8), metadata=metadata(LAYERS, EXPERTS, TOP_K),
    )
    made.validate()
    return made


def named(prediction: Prediction, token: int, layer: int) -> list[int]:
    return [int(each) for each in prediction.ranking[token, layer] if each != 255]


def test_the_previous_token_is_the_last_of_an_earlier_pass(trace: Trace) -> None:
    found = previous_token.predict(trace)
    for token in range(trace.tokens):
        earlier = [
            row for row in range(trace.tokens)
            if trace.request[row] == trace.request[token] and trace.step[row] < trace.step[token]
        ]
        for layer in range(LAYERS):
            expected = [int(e) for e in trace.experts[max(earlier), layer] if e != 255] if earlier else []
            assert named(found, token, layer) == expected


def test_static_frequency_counts_the_first_half_and_foresees_the_second(trace: Trace) -> None:
    found = static_frequency.predict(trace)
    half = trace.step[(trace.tokens - 1) // 2]
    fitted = [row for row in range(trace.tokens) if trace.step[row] <= half]
    assert 0 < len(fitted) < trace.tokens
    for layer in range(LAYERS):
        counts = Counter(int(e) for row in fitted for e in trace.experts[row, layer] if e != 255)
        expected = sorted(counts, key=lambda expert: (-counts[expert], expert))[:3]
        for token in range(trace.tokens):
            assert named(found, token, layer) == ([] if token in fitted else expected)


def test_the_activation_matrix_is_that_of_the_nearest_ended_request(trace: Trace) -> None:
    found = activation_matrix.predict(trace)
    foreseen = 0
    for token in range(trace.tokens):
        now, own = trace.step[token], trace.request[token]
        collected = [
            matrix(trace, trace.request == request) for request in ended_before(trace, now)
        ]
        for layer in range(LAYERS):
            if layer == 0 or not collected:
                assert named(found, token, layer) == []
                continue
            so_far = matrix(trace, (trace.request == own) & (trace.step < now))
            so_far[:layer] = matrix(trace, (trace.request == own) & (trace.step <= now))[:layer]
            nearest = max(collected, key=lambda each: similarity(so_far, each))
            expected = sorted(np.flatnonzero(nearest[layer]), key=lambda expert: (-nearest[layer][expert], expert))[:3]
            assert named(found, token, layer) == expected
            foreseen += 1
    assert foreseen > 20


def ended_before(trace: Trace, step: Any) -> list[int]:
    """Requests whose last token an earlier step computed, in the order in which they ended."""
    last = {int(request): int(trace.step[trace.request == request].max()) for request in np.unique(trace.request)}
    return sorted((request for request in last if last[request] < step), key=lambda request: (last[request], request))


def matrix(trace: Trace, rows: Any) -> Any:
    counts = np.zeros((LAYERS, EXPERTS))
    for row in np.flatnonzero(rows):
        for layer in range(LAYERS):
            for expert in trace.experts[row, layer]:
                if expert != 255:
                    counts[layer, expert] += 1
    return counts


def similarity(one: Any, other: Any) -> float:
    cosines = [
        float(a @ b / np.sqrt((a @ a) * (b @ b))) if a.any() and b.any() else 0.0
        for a, b in zip(one, other, strict=True)
    ]
    return round(sum(cosines), 12)  # equal matches are equal, whichever way they were added up


def test_a_full_collection_drops_the_entry_that_was_matched_least(trace: Trace) -> None:
    alone = activation_matrix.predict(trace, capacity=1)
    last = np.flatnonzero(trace.request == 5)
    counts = matrix(trace, trace.request == 4)[1]
    expected = sorted(np.flatnonzero(counts), key=lambda expert: (-counts[expert], expert))[:3]
    assert all(named(alone, token, 1) == expected for token in last)


@pytest.mark.skipif(not REAL_TRACES.exists(), reason="the recordings of real models are not beside this checkout")
@pytest.mark.parametrize(("name", "overlap"), [("olmoe-all", 0.415), ("dsv2lite-all", 0.242), ("gptoss-all", 0.504)])
def test_the_previous_tokens_recall_is_the_published_overlap(name: str, overlap: float) -> None:
    real = import_trace(REAL_TRACES / "nvmoe" / f"{name}.tokens.jsonl")
    recall = overall(measure_recall(real, previous_token.predict(real)).at_k)
    assert recall == pytest.approx(overlap, abs=0.002)  # the table counts the step from one request to the next


def test_what_is_foreseen_is_a_valid_prediction(trace: Trace) -> None:
    for module in (previous_token, static_frequency, activation_matrix):
        made = Trace(
            **{name: getattr(trace, name) for name in ("experts", "weights", "step", "request", "position", "phase")},
            predicted={module.NAME: module.predict(trace)},
            metadata=trace.metadata.model_copy(update={"predictors": {module.NAME: module.AVAILABILITY}}),
        )
        made.validate()
