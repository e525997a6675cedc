"""Fitting: nets that learn what can be learned, files that know where they come from, text that is not seen twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.captured_batches import captured_batches
from moesim.record.predictors.default_vectors import fit_default_vectors
from moesim.record.predictors.estimator import Estimator
from moesim.record.predictors.estimator_fit import EstimatorSettings, fit_estimator
from moesim.record.predictors.fitted import Fitted
from moesim.record.predictors.pre_attention import PreAttention
from moesim.record.predictors.pre_attention_fit import fit_pre_attention, pre_attention_loss
from moesim.record.predictors.predictor import Predictor, foresee
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.record.predictors.token_windows import WINDOW_TOKENS, aligned_hashes, refuse_overlap
from tests.record.tiny_models import EXPERTS, TOP_K, VOCABULARY, olmoe


def text(seed: int, batches: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (8, 32), generator=generator) for _ in range(batches)]


@pytest.fixture(scope="module")
def model() -> Any:
    return olmoe()


def recall(predictor: Predictor, model: Any, batches: list[torch.Tensor]) -> list[float]:
    """By layer, one token at a time."""
    shares: list[list[float]] = [[] for _ in find_moe_layers(model)]
    for captured in captured_batches(model, find_moe_layers(model), batches, attention_input=True):
        named = foresee(predictor, captured).topk(TOP_K, dim=-1).indices
        for layer, share in enumerate(shares):
            for token in range(named.shape[1]):
                true = set(captured.experts[layer, token].tolist())
                share.append(len(true & set(named[layer, token].tolist())) / len(true))
    return [sum(share) / len(share) for share in shares]


def test_the_estimator_learns_and_its_validation_recall_is_right(model: Any) -> None:
    layers, held_out = find_moe_layers(model), text(99, 1)
    vectors, _ = fit_default_vectors(model, layers, text(1, 2), EXPERTS)
    settings = EstimatorSettings(reduction=1, learning_rate=1e-2, step_tokens=32)
    seen: list[tuple[int, int]] = []
    found = fit_estimator(
        model, layers, text(1, 10), held_out, vectors, settings, progress=lambda *done: seen.append(done)
    )
    assert seen == [(step, 80) for step in range(1, 81)]
    base = ResidualDefaultVectors(layers, vectors)
    assert found.recall[1:] == pytest.approx(recall(Estimator(base, found.net), model, held_out)[1:])
    assert found.base_recall[1:] == pytest.approx(recall(base, model, held_out)[1:])
    assert np.isnan(found.recall[0])
    # A net that knew nothing would name k of E at random; this one names the tokens that it has seen.
    assert np.mean(found.recall[1:]) > 1.8 * TOP_K / EXPERTS
    assert found.wins == [at for at in range(1, 5) if found.recall[at] > found.base_recall[at]]
    again = fit_estimator(model, layers, text(1, 10), held_out, vectors, settings)
    torch.testing.assert_close(again.net.state_dict(), found.net.state_dict(), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["arch1", "arch2"])
def test_pre_attention_learns_the_first_layer_too(model: Any, architecture: str) -> None:
    layers = find_moe_layers(model)
    nets = fit_pre_attention(model, layers, text(1, 10), architecture, width=64, learning_rate=1e-2, step_tokens=32)
    found = recall(PreAttention(nets, architecture), model, text(99, 1))
    assert found[0] > 1.6 * TOP_K / EXPERTS
    assert not any(net.training for net in nets)


@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 4), st.sampled_from(["arch1", "arch2"]), st.integers(0, 99))
def test_the_pre_attention_loss_is_its_definition(
    tokens: int, experts: int, top_k: int, architecture: str, seed: int
) -> None:
    top_k = min(top_k, experts - 1)
    generator = torch.Generator().manual_seed(seed)
    logits, true = torch.randn(2, tokens, experts, generator=generator, dtype=torch.float64)
    ranked = true.argsort(dim=1, descending=True)
    entropies, hinges = [], []
    for token in range(tokens):
        rank = {int(expert): place for place, expert in enumerate(ranked[token])}
        for expert in range(experts):
            share = torch.sigmoid(logits[token, expert])
            if rank[expert] < top_k:
                entropies.append(-3.0 * share.log())
                hinges += [
                    max(0.0, 1 - float(logits[token, expert] - logits[token, other]))
                    for other in range(experts) if rank[other] >= top_k
                ]
            else:
                middle = architecture == "arch1" and rank[expert] < 2 * top_k
                entropies.append(-(1.5 if middle else 0.5) * (1 - share).log())
    expected = float(sum(entropies)) / len(entropies)
    if architecture == "arch1":
        expected += 0.3 * sum(hinges) / len(hinges)
    found = pre_attention_loss(architecture, logits, true, ranked[:, :top_k])
    assert float(found) == pytest.approx(expected)


def test_a_fitted_file_knows_its_model_and_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    about = {"weights_sha256": "ab" * 32, "seed": 3}
    windows = aligned_hashes([range(100)])
    Fitted("default-vectors", {"vectors": torch.ones(2, 3, 4)}, about, windows).save(path)
    again = Fitted.load(path, "default-vectors", "ab" * 32)
    assert again.about == about
    torch.testing.assert_close(again.tensors["vectors"], torch.ones(2, 3, 4))
    np.testing.assert_array_equal(again.windows, windows)
    for kind, weights, rule in (
        ("estimator", None, "it holds default-vectors, not estimator"),
        ("default-vectors", "cd" * 32, "the model has cdcdcdcdcdcd"),
    ):
        with pytest.raises(InputError, match=rule):
            Fitted.load(path, kind, weights)
    other = tmp_path / "other"
    other.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        Fitted.load(other, "estimator")
    with pytest.raises(InputError, match="cannot be read"):
        Fitted.load(tmp_path / "missing", "estimator")


@given(st.data())
def test_a_common_stretch_is_found_wherever_it_lies(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    fitted, held_out = random.integers(0, 50_000, (2, 400))
    length = data.draw(st.integers(0, 200))
    source, place = data.draw(st.integers(0, 400 - length)), data.draw(st.integers(0, 400 - length))
    held_out[place : place + length] = fitted[source : source + length]
    kept = aligned_hashes([fitted[:150], fitted[150:]])
    windows = {tuple(part[at : at + WINDOW_TOKENS]) for part in (fitted[:150], fitted[150:])
               for at in range(0, len(part) - WINDOW_TOKENS + 1, WINDOW_TOKENS)}
    shared = [at for at in range(400 - WINDOW_TOKENS + 1) if tuple(held_out[at : at + WINDOW_TOKENS]) in windows]
    if shared:
        with pytest.raises(InputError, match=rf"sequence 1: its tokens {shared[0]} to .* are part of the fitted text"):
            refuse_overlap(kept, [range(60_000, 60_100), held_out], "the fitted text")
    else:
        refuse_overlap(kept, [held_out], "the fitted text")
    if length >= 2 * (2 * WINDOW_TOKENS - 1):
        assert shared, "half of the stretch lies within one of the two parts"


def test_short_texts_have_no_window() -> None:
    assert len(aligned_hashes([range(WINDOW_TOKENS - 1)])) == 0
    assert len(aligned_hashes([range(WINDOW_TOKENS)])) == 1
    assert len(aligned_hashes([])) == 0
