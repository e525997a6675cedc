"""docs/quality.md says of the two larger reference models what was measured on the weights of the shipped traces."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.events import steps
from moesim.policies.composition import parse
from moesim.quality.resident_pool import slots_of
from moesim.quality.stored import Interval, Measured, Quality, load
from moesim.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT / "traces"
PAGE = (ROOT / "docs" / "quality.md").read_text()
WORDED = " ".join(PAGE.split())
NAMES = ("reference-16x64", "reference-48x128")


@cache
def quality(name: str) -> Quality:
    return load(TRACES / f"{name}.quality.json")


@cache
def scores(name: str) -> Trace:
    return Trace.load(TRACES / f"{name}-scores.safetensors")


def section(name: str) -> str:
    """What the page says of one model alone."""
    return PAGE.split(f"`traces/{name}.quality.json`")[1].split("\n### ")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_cost_is_the_measured_one(name: str) -> None:
    _, table = section(name).split("\n| mode | cache | perplexity, % | KL, nats | same top-1, % |\n")
    ruler, *rows = table.split("\n\n")[0].splitlines()
    assert ruler == "|---|---|---|---|---|"
    measured = [each for each in quality(name).measured if each.mode != "true"]
    assert rows == [f"| {words(each)} | {share(each)} | {figures(each)} |" for each in measured]


@pytest.mark.parametrize("name", NAMES)
def test_whose_figures_they_are(name: str) -> None:
    found = quality(name)
    training: Any = Trace.load(TRACES / f"{name}.safetensors").metadata.provenance["training"]
    recall: dict[str, Any] = json.loads((TRACES / f"{name}.recall.json").read_text())
    assert found.weights_sha256 == training["weights_sha256"] == recall["weights_sha256"]
    trained = f"{training['steps']:,} steps, {training['tokens'] / 1e6:.1f} M tokens"
    assert f"{name} (weights {found.weights_sha256[:12]}…, {trained}), `traces/{name}.quality.json`" in WORDED
    true = [each for each in found.measured if each.mode == "true"]
    assert {each.passes for each in true} == {"whole", "stepped"}
    assert all(each.perplexity_increase == each.kl_nats == Interval(value=0, low=0, high=0) for each in true)
    assert all(f"\nIts true perplexity is {each.perplexity.value:.2f}." in section(name) for each in true)


@pytest.mark.parametrize("name", NAMES)
def test_on_what_they_were_measured(name: str) -> None:
    found, text = quality(name), quality(name).text
    assert (found.device, found.dtype, found.method.confidence) == ("NVIDIA H200", "float32", 0.95)
    assert (text, found.left_out) == (quality(NAMES[0]).text, [])
    assert text.blocks == text.lanes, "one block each"
    assert (
        f"{text.tokens_measured:,} tokens measured on {text.lanes} lanes of one block each "
        f"({text.block_tokens} tokens: prompt {text.prompt_tokens}, then {text.warmup_tokens} of warm-up)"
    ) in WORDED


def test_how_far_the_threshold_reaches() -> None:
    """Ranks that carry .6 of the probability, and what the chosen carry, on the text of the scores traces."""
    ranks, chosen = [], []
    for name in NAMES:
        trace = scores(name)
        assert trace.scores is not None
        reached = np.cumsum(-np.sort(-trace.scores.astype(np.float64), axis=-1), axis=-1)
        ranks.append(f"{((reached < 0.6 * reached[..., -1:]).sum(-1) + 1).mean():.1f}")
        chosen.append(f"{reached[..., trace.top_k - 1].mean():.2f}".lstrip("0"))
    assert f"{ranks[0]} ranks of 64 at 16 × 64 and {ranks[1]} of 128 at 48 × 128" in WORDED
    assert f"carry {chosen[0]} and {chosen[1]} of it" in WORDED


@pytest.mark.parametrize(
    ("name", "policy", "said"),
    [
        ("reference-16x64", "cache-prior", "({} and {} % at 16 × 64)"),
        ("reference-48x128", "cache-prior", "λ = 0.5 fills {} % of the pool of 50 % in 32 tokens and {} % in 64"),
        ("reference-48x128", "cumulative-threshold", "`cumulative-threshold` {} and {} %"),
        ("reference-48x128", "max-rank", "`max-rank` {} and {} %"),
    ],
)
def test_how_full_the_pools_get(name: str, policy: str, said: str) -> None:
    """Decoding alone, each request from an empty pool, through moesim's own decider: the mean over requests."""
    trace, filled = scores(name), []
    slots = slots_of(0.5, trace.layers, trace.n_experts)
    for request in np.unique(trace.request):
        rows = np.flatnonzero((trace.request == request) & (trace.phase == 1))
        decider = Decider(parse(policy), trace.layers, trace.n_experts, Capacity(slots), largest_event=trace.top_k)
        held: set[int] = set()
        after = []
        for decision in run_without_clock(decider, steps(trace.slice(int(rows[0]), int(rows[-1]) + 1))):
            held.update(expert for wave in decision.waves for expert in wave.execute)
            after.append(len(held))
        assert after[-1] < slots, "nothing is evicted, so what has run is what is resident"
        filled.append([after[tokens * trace.layers - 1] / slots for tokens in (32, 64)])
    assert said.format(*(f"{100 * each:.0f}" for each in np.mean(filled, axis=0))) in WORDED


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


def share(each: Measured) -> str:
    return "–" if each.cache_fraction is None else f"{100 * each.cache_fraction:g} %"


def figures(each: Measured) -> str:
    increase, divergence, agreement = each.perplexity_increase, each.kl_nats.value, each.top1_agreement.value
    interval = f"({100 * increase.low:.2f} to {100 * increase.high:.2f})"
    return f"{100 * increase.value:+.2f} {interval} | {divergence:.4f} | {100 * agreement:.1f}"
