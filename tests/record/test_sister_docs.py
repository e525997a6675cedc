"""The tables on sisters of the reference models in docs/predictors.md and docs/quality.md say what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.quality.stored import Interval, Measured, load
from moesim.record.predictors.recall_report import FIGURES
from tests.record.test_predictor_docs import PAGE, ROOT, row

NAMES = ("reference-16x64", "reference-48x128")
QUALITY_PAGE = (ROOT / "docs" / "quality.md").read_text()


def recall(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((ROOT / "traces" / f"{name}-sister.recall.json").read_text())
    return told


def rows_after(page: str, head: str) -> list[str]:
    """The rows of the table with that header, of which there is one."""
    _, table = page.split(f"\n{head}")
    _, ruler, *rows = table.split("\n\n")[0].splitlines()
    assert set(ruler) == {"|", "-"}
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_every_recall_is_the_measured_one(name: str) -> None:
    predictors = recall(name)["predictors"]
    assert rows_after(PAGE, f"| sister of {name} | foreseen ") == [
        f"| `{channel}` | {100 * each['coverage']:.0f} % | "
        + row([*(each[figure] for figure in FIGURES), each["recall_by_slot"][0], each["recall_by_slot"][-1]])
        for channel, each in predictors.items()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_recall_by_layer_is_the_measured_one(name: str) -> None:
    told = recall(name)
    recorded = {channel: each for channel, each in told["predictors"].items() if each["origin"] == "recorded"}
    section = PAGE.split(f"\n### Sister of {name}\n")[1].split("\n### ")[0]
    assert rows_after(section, f"| layer | {' | '.join(f'`{channel}`' for channel in recorded)} |") == [
        f"| {number} | {row([each['by_layer']['recall_at_k'][index] for each in recorded.values()])}"
        for index, number in enumerate(told["moe_layers"])
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_cost_is_the_measured_one(name: str) -> None:
    measured = [each for each in load(quality_file(name)).measured if each.mode != "true"]
    cached = any(each.cache_fraction is not None for each in measured)
    section = QUALITY_PAGE.split(f"`traces/{name}-sister.quality.json`")[1].split("\n### ")[0]
    assert rows_after(section, "| mode | cache |" if cached else "| mode | perplexity, % |") == [
        " | ".join((f"| {words(each)}", *([cache(each)] if cached else []), figures(each))) + " |" for each in measured
    ]


@pytest.mark.parametrize("name", NAMES)
def test_whose_figures_they_are(name: str) -> None:
    quality, sha256 = load(quality_file(name)), recall(name)["weights_sha256"]
    true = [each for each in quality.measured if each.mode == "true"]
    assert quality.weights_sha256 == sha256
    assert all(each.perplexity_increase == each.kl_nats == Interval(value=0, low=0, high=0) for each in true)
    for page in (PAGE, QUALITY_PAGE, (ROOT / "traces" / "README.md").read_text()):
        assert f"sister of {name} (weights {sha256[:12]}…" in page.replace("\n", " ")
    assert f"{recall(name)['tokens_counted']:,}" in PAGE
    assert f"{quality.text.tokens_measured:,} tokens measured" in QUALITY_PAGE
    assert f"Its true perplexity is {true[0].perplexity.value:.2f}." in QUALITY_PAGE


def quality_file(name: str) -> Path:
    return ROOT / "traces" / f"{name}-sister.quality.json"


def words(each: Measured) -> str:
    """A mode as the table names it: what differs from its defaults, and the paper's parameter where it has one."""
    said, chosen = each.variant, each.parameters
    if "high" in said:
        return f"every expert int{chosen['bits']}"
    found = [each.mode, *([f"`{each.predictor}`"] if each.mode == "speculate-and-execute" else [])]
    found += [f"{sign} {chosen[key]}" for key, sign in SIGNS.items() if key in chosen]
    found += [WORDS[key][chosen[key]] for key in WORDS if key in chosen and WORDS[key][chosen[key]]]
    found += [f"from layer {said['first_layer']} on"] if "first_layer" in said else []
    return ", ".join(found)


SIGNS = {"strength": "λ =", "rank": "rank", "mass": "p ="}
WORDS: dict[str, dict[Any, str]] = {
    "when": {"missing": "misses", "always": "hits and misses"},
    "loop": {"closed": "", "open": "open loop"},
    "renormalise": {False: "", True: "renormalised"},
    "weight": {"original": "", "own": "own weights"},
}


def cache(each: Measured) -> str:
    return "–" if each.cache_fraction is None else f"{100 * each.cache_fraction:g} %"


def figures(each: Measured) -> str:
    increase, divergence, agreement = each.perplexity_increase, each.kl_nats.value, each.top1_agreement.value
    interval = f"({100 * increase.low:.2f} to {100 * increase.high:.2f})"
    return f"{100 * increase.value:+.2f} {interval} | {divergence:.4f} | {100 * agreement:.1f}"
