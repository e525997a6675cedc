"""Recall against the definition worked out one token at a time, and the command that prints it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import ConfigError
from moesim.record.predictors.recall import Recall, measure_recall, overall
from moesim.record.predictors.recall_report import report
from moesim.trace import DECODE, PREFILL, Availability, Prediction, Trace
from tests.traces_for_tests import metadata

REFERENCE = Path(__file__).resolve().parents[2] / "traces" / "reference-16x64.safetensors"


@st.composite
def predicted_trace(draw: st.DrawFn) -> tuple[Trace, Prediction, Any]:
    """A trace with absent choices and absent predictions, a ranking of any length, and the rows that count."""
    tokens, layers, top_k = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n_experts = draw(st.integers(top_k, 9))
    ranked = draw(st.integers(1, n_experts))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    order = np.argsort(random.random((tokens, layers, n_experts)), axis=-1).astype(np.uint8)
    experts = order[..., :top_k].copy()
    ranking = np.argsort(random.random((tokens, layers, n_experts)), axis=-1).astype(np.uint8)[..., :ranked].copy()
    weights = -np.sort(-random.random(experts.shape).astype(np.float16), axis=-1)
    for array in (experts, ranking):
        kept = random.integers(0, array.shape[-1] + 1, array.shape[:2]) | random.integers(0, 2, array.shape[:2]) * 99
        array[np.arange(array.shape[-1]) >= kept[..., None]] = 255
    weights[experts == 255] = 0
    row = np.arange(tokens, dtype=np.uint32)
    trace = Trace(
        experts=experts, weights=weights if draw(st.booleans()) else None, step=row, request=row * 0, position=row,
        phase=np.full(tokens, DECODE, np.uint8), metadata=metadata(layers, n_experts, top_k),
    )
    return trace, Prediction(ranking), random.random(tokens) < draw(st.sampled_from([0.5, 2.0]))


def by_hand(trace: Trace, prediction: Prediction, counted: Any, layer: int) -> dict[str, list[float]]:
    """The values of every foreseen token of a layer, from the definition at the head of recall.py."""
    found: dict[str, list[float]] = {"at_k": [], "at_1_5_k": [], "weight_mass": []}
    for token in range(trace.tokens):
        chosen = [int(e) for e in trace.experts[token, layer] if e != 255]
        named = [int(e) for e in prediction.ranking[token, layer] if e != 255]
        if not (counted[token] and chosen and named):
            continue
        first = named[: trace.top_k]
        found["at_k"].append(len(set(chosen) & set(first)) / len(chosen))
        found["at_1_5_k"].append(len(set(chosen) & set(named[: math.ceil(trace.top_k * 3 / 2)])) / len(chosen))
        if trace.weights is not None:
            weight = dict(zip(chosen, trace.weights[token, layer].astype(float), strict=False))
            whole = sum(weight.values())
            found["weight_mass"].append(sum(weight[e] for e in chosen if e in first) / whole if whole else 0.0)
        for slot, expert in enumerate(chosen):
            found.setdefault(f"slot {slot}", []).append(float(expert in first))
    return found


@given(predicted_trace())
def test_recall_is_what_the_definition_says(made: tuple[Trace, Prediction, Any]) -> None:
    trace, prediction, counted = made
    found: Recall = measure_recall(trace, prediction, counted)
    for layer in range(trace.layers):
        expected = by_hand(trace, prediction, counted, layer)
        assert found.tokens[layer] == len(expected["at_k"])
        if prediction.ranking.shape[-1] < min(math.ceil(1.5 * trace.top_k), trace.n_experts):
            expected["at_1_5_k"] = []
        for name in ("at_k", "at_1_5_k", "weight_mass"):
            assert getattr(found, name)[layer] == pytest.approx(mean(expected[name]), nan_ok=True)
        for slot in range(trace.top_k):
            assert found.by_slot[layer, slot] == pytest.approx(mean(expected.get(f"slot {slot}", [])), nan_ok=True)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace.load(REFERENCE).slice(0, 300)
    whole = measure_recall(trace, trace.predicted["residual"])
    monkeypatch.setattr("moesim.record.predictors.recall._CHUNK_TOKENS", 7)
    np.testing.assert_allclose(measure_recall(trace, trace.predicted["residual"]).weight_mass, whole.weight_mass)


def test_the_overall_figure_counts_each_foreseen_layer_once() -> None:
    assert overall(np.array([np.nan, 0.5, 1.0])) == 0.75
    assert overall(np.array([np.nan])) is None


def test_phases_and_rows_are_those_asked_for() -> None:
    trace = Trace.load(REFERENCE)
    phase = np.asarray(trace.phase)
    assert report(trace, "prefill", 500)["tokens_counted"] == int((phase[:500] == PREFILL).sum())
    assert report(trace, None, 500)["phase"] == "decode"
    prefill_alone = replace(trace.slice(0, 64), path=None)
    assert report(prefill_alone)["tokens_counted"] == 64
    with pytest.raises(ConfigError, match="no decode token"):
        report(prefill_alone, "decode")
    with pytest.raises(ConfigError, match="did you mean decode"):
        report(trace, "decod", 500)


def test_a_recorded_channel_is_not_computed_again() -> None:
    trace = Trace.load(REFERENCE).slice(0, 200)
    ranking = np.full_like(np.asarray(trace.experts), trace.absent)
    availability = Availability(layer_offset=0, point="before", description="another rule")
    recorded = replace(
        trace, predicted={"previous-token": Prediction(ranking)},
        metadata=trace.metadata.model_copy(update={"predictors": {"previous-token": availability}}),
    )
    told = report(recorded)["predictors"]
    assert list(told) == ["previous-token", "static-frequency", "activation-matrix"]
    assert told["previous-token"]["origin"] == "recorded"
    assert told["previous-token"]["coverage"] == 0.0
    assert told["previous-token"]["recall_at_k"] is None


def test_the_command_prints_tables_json_and_a_figure(tmp_path: Path) -> None:
    command = ["trace", "predictors", str(REFERENCE), "--rows", "600"]
    shown = CliRunner().invoke(app, [*command, "--plot", str(tmp_path / "recall.png")])
    assert shown.exit_code == 0
    assert "residual+default-vectors" in shown.output
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert told["predictors"]["residual"]["by_layer"]["recall_at_k"][0] is None
    assert 0.6 < told["predictors"]["residual"]["recall_at_k"] < 1
    refused = CliRunner().invoke(app, [*command, "--plot", str(tmp_path / "recall.bmp")])
    assert "ends in .png" in str(refused.exception)
    assert [each.name for each in tmp_path.iterdir()] == ["recall.png"]
