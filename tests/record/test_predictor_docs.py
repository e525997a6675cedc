"""docs/predictors.md says what the shipped traces say, and names every predictor that there is."""

from pathlib import Path

import pytest

from moesim.record.predictors.chosen import NAMES
from moesim.record.predictors.recall_report import FIGURES, report
from moesim.record.predictors.trace_channels import COMPUTED
from moesim.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "predictors.md").read_text()


@pytest.mark.parametrize("name", ["reference-16x64", "reference-48x128"])
def test_every_figure_of_the_tables_is_measured(name: str) -> None:
    told = report(Trace.load(ROOT / "traces" / f"{name}.safetensors"))
    predictors = told["predictors"]
    assert f"{told['tokens_counted']:,}" in PAGE
    for channel, each in predictors.items():
        figures = [each[figure] for figure in FIGURES] + [each["recall_by_slot"][0], each["recall_by_slot"][-1]]
        assert f"| `{channel}` | {100 * each['coverage']:.0f} % | {row(figures)}" in PAGE
    assert f"| layer | {' | '.join(f'`{channel}`' for channel in predictors)} |" in PAGE
    for index, number in enumerate(told["moe_layers"]):
        assert f"| {number} | {row([each['by_layer']['recall_at_k'][index] for each in predictors.values()])}" in PAGE


def row(figures: list[float | None]) -> str:
    return "".join("– | " if figure is None else f"{figure:.3f} | " for figure in figures).rstrip()


def test_every_predictor_is_described() -> None:
    for name in (*NAMES, *COMPUTED, "self-draft-1"):
        assert f"`{name}`" in PAGE or f"`{name.replace('pre-attention', '')}`" in PAGE
