"""docs/predictors.md says what was measured on the reference models, and names every predictor that there is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesim.record.predictors.chosen import NAMES
from moesim.record.predictors.recall_report import FIGURES, report
from moesim.record.predictors.trace_channels import COMPUTED
from moesim.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "predictors.md").read_text()
MODELS = ("reference-16x64", "reference-48x128")


def recall(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((ROOT / "traces" / f"{name}.recall.json").read_text())
    return told


def shipped(name: str) -> Trace:
    return Trace.load(ROOT / "traces" / f"{name}.safetensors")


def rows_after(page: str, head: str) -> list[str]:
    """The rows of the table with that header, of which there is one."""
    _, table = page.split(f"\n{head}")
    _, ruler, *rows = table.split("\n\n")[0].splitlines()
    assert set(ruler) == {"|", "-"}
    return rows


def row(figures: list[float | None]) -> str:
    return "".join("– | " if figure is None else f"{figure:.3f} | " for figure in figures).rstrip()


def overall(each: dict[str, Any]) -> list[float | None]:
    return [*(each[figure] for figure in FIGURES), each["recall_by_slot"][0], each["recall_by_slot"][-1]]


@pytest.mark.parametrize("name", MODELS)
def test_every_recall_is_the_measured_one(name: str) -> None:
    assert rows_after(PAGE, f"| {name} | foreseen ") == [
        f"| `{channel}` | {100 * each['coverage']:.0f} % | {row(overall(each))}"
        for channel, each in recall(name)["predictors"].items()
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_recall_by_layer_is_the_measured_one(name: str) -> None:
    told = recall(name)
    predictors = told["predictors"]
    section = PAGE.split(f"\n### {name}\n")[1].split("\n### ")[0]
    assert rows_after(section, f"| layer | {' | '.join(f'`{channel}`' for channel in predictors)} |") == [
        f"| {number} | {row([each['by_layer']['recall_at_k'][index] for each in predictors.values()])}"
        for index, number in enumerate(told["moe_layers"])
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_figures_are_of_the_weights_of_the_shipped_trace(name: str) -> None:
    told, trace = recall(name), shipped(name)
    training: Any = trace.metadata.provenance["training"]
    assert told["weights_sha256"] == training["weights_sha256"]
    assert told["moe_layers"] == trace.metadata.moe_layers
    assert f"{told['tokens_counted']:,}" in PAGE
    of_weights = f"{name} (weights {training['weights_sha256'][:12]}…, {training['steps']:,} steps, "
    assert f"- {of_weights}{training['tokens'] / 1e6:.1f} M tokens)" in PAGE


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_trace_says_nearly_the_same(name: str) -> None:
    of_all, own = recall(name), report(shipped(name))
    assert own["tokens_counted"] == of_all["tokens_counted"]
    assert "less than .0003 over all layers and by less than .002 in every layer" in PAGE
    for channel, each in own["predictors"].items():
        other = of_all["predictors"][channel]
        assert each["coverage"] == other["coverage"]
        assert all(difference < 3e-4 for difference in differences(overall(each), overall(other)))
        for figure in FIGURES:
            by_layer = (each["by_layer"][figure], other["by_layer"][figure])
            assert all(difference < 2e-3 for difference in differences(*by_layer))


def differences(ones: list[float | None], others: list[float | None]) -> Iterator[float]:
    for one, other in zip(ones, others, strict=True):
        assert (one is None) == (other is None)
        yield 0.0 if one is None or other is None else abs(one - other)


def test_every_predictor_is_described() -> None:
    for name in (*NAMES, *COMPUTED, "self-draft-1"):
        assert f"`{name}`" in PAGE or f"`{name.replace('pre-attention', '')}`" in PAGE
