"""What is promised of the traces that come with the repository, checked on the files themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import trace_statistics as statistics
from moesim.trace import DECODE, PREFILL, Trace
from traces.recipes import realism
from traces.recipes.write import MOST_WEIGHT_BYTES

FOLDER = Path(__file__).resolve().parents[2] / "traces"
SHAPES = {"reference-16x64": (16, 64), "reference-48x128": (48, 128)}
NAMES = [*SHAPES, *(f"{name}-scores" for name in SHAPES)]
# The traces of the models before, which measurements on a GPU replayed, stay as they are.
EARLIER_BYTES = 19e6


def load(name: str) -> Trace:
    return Trace.load(FOLDER / f"{name}.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_valid(name: str) -> None:
    trace = load(name)
    trace.validate()
    assert (trace.layers, trace.n_experts, trace.top_k) == (*SHAPES[name.removesuffix("-scores")], 8)
    assert trace.metadata.name == name
    assert not trace.metadata.synthetic


@pytest.mark.parametrize("name", NAMES)
def test_provenance_says_how_to_make_it_again(name: str) -> None:
    metadata = load(name).metadata
    assert metadata.source == f"python -m traces.recipes {name.removesuffix('-scores')}"
    corpus, training = metadata.provenance["corpus"], metadata.provenance["training"]
    assert isinstance(corpus, dict)
    assert isinstance(training, dict)
    assert all({"registry", "name", "version", "sha256", "licence"} <= set(each) for each in corpus["packages"])
    assert len(training["weights_sha256"]) == 64
    assert training["tokens"] > 30_000_000
    assert set(training["perplexity"]) == {each.kind for each in load("reference-16x64").metadata.requests}


def test_all_of_them_stay_small() -> None:
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) <= 24e6 + EARLIER_BYTES + MOST_WEIGHT_BYTES
    assert max(sizes) <= 20e6


@pytest.mark.parametrize("name", SHAPES)
def test_requests_are_interleaved_across_kinds_and_run_as_promised(name: str) -> None:
    trace = load(name)
    kinds = [each.kind for each in trace.metadata.requests]
    count = len(set(kinds))
    assert count >= 7
    assert kinds == kinds[:count] * 3
    for each in trace.metadata.requests:
        rows = np.flatnonzero(trace.request == each.request)
        assert (np.diff(rows) == 1).all()
        assert (trace.position[rows] == np.arange(len(rows))).all()
        prompt = each.prompt_tokens
        assert prompt is not None
        assert 32 <= prompt <= 64 <= len(rows) - prompt
        assert (trace.phase[rows] == np.where(np.arange(len(rows)) < prompt, PREFILL, DECODE)).all()
        assert len(np.unique(trace.step[rows[:prompt]])) == 1
        assert (np.diff(trace.step[rows[prompt - 1 :]]) == 1).all()


@pytest.mark.parametrize("name", SHAPES)
def test_routing_is_that_of_a_trained_model(name: str) -> None:
    trace = load(name)
    found = statistics.routing(np.asarray(trace.experts), trace.n_experts)
    assert found.overlap >= 2 * found.shuffled
    assert 0.40 <= found.lru_quarter <= 0.90
    recall = {
        predictor: np.nanmean(statistics.prediction_recall(np.asarray(trace.experts), np.asarray(each.ranking)))
        for predictor, each in trace.predicted.items()
    }
    # Default vectors can only add to what the residual stream tells.
    assert recall["residual+default-vectors"] > recall["residual"] > 0.8


@pytest.mark.parametrize("name", SHAPES)
def test_scores_and_choice_belong_together(name: str) -> None:
    trace = load(f"{name}-scores")
    assert trace.scores is not None
    assert trace.weights is not None
    scores = np.asarray(trace.scores, dtype=np.float32)
    np.testing.assert_allclose(scores.sum(-1), 1.0, atol=2e-3)
    chosen = np.take_along_axis(scores, trace.experts.astype(int), axis=-1)
    others = scores.copy()
    np.put_along_axis(others, trace.experts.astype(int), 0.0, axis=-1)
    assert (chosen.min(-1) >= others.max(-1)).all()
    gate = chosen if name == "reference-16x64" else chosen / chosen.sum(-1, keepdims=True)
    # The models compute in bfloat16, with 8 bits of mantissa; the scores were kept before that rounding.
    np.testing.assert_allclose(np.asarray(trace.weights, dtype=np.float32), gate, rtol=6e-3, atol=1e-4)


def test_the_readme_says_what_the_files_say() -> None:
    readme = (FOLDER / "README.md").read_text()
    traces = [load(name) for name in SHAPES]
    for row in realism.summary(traces).splitlines()[2:]:
        assert row in readme
    assert realism.perplexities(traces) in readme
    for trace in traces:
        assert realism.by_layer(trace) in readme
    training: list[Any] = [trace.metadata.provenance["training"] for trace in traces]
    for cells in (
        [f"{each['tokens'] / 1e6:.1f} M ({each['steps']:,})" for each in training],
        [f"{round(each['tokens'] / each['seconds'], -3):,.0f}" for each in training],
        [f"{each['parameters']:,}" for each in training],
        [f"`{each['weights_sha256'][:8]}…`" for each in training],
    ):
        assert f" | {' | '.join(cells)} |\n" in readme
