"""The recorder against what the models themselves report and against the definitions worked out by hand."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer, find_moe_layers
from moesim.record.predictors.default_vectors import fit_default_vectors
from moesim.record.predictors.next_layer import PREDICTORS, RESIDUAL, RESIDUAL_DEFAULT_VECTORS, ROUTER_INPUT
from moesim.record.recorder import TokenSequence, record_requests
from moesim.record.recording import Recording
from moesim.trace import DECODE, PREFILL, Availability, Trace, TraceMetadata
from tests.record.tiny_models import EXPERTS, TOP_K, VOCABULARY, olmoe, qwen3

MODELS = {"olmoe": olmoe, "qwen3": qwen3}
RANKED = 7


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


def sequences() -> list[TokenSequence]:
    random = np.random.default_rng(3)
    return [
        TokenSequence(kind, random.integers(0, VOCABULARY, tokens).tolist(), prompt)
        for kind, tokens, prompt in [("prose", 14, 5), ("code", 14, 5), ("prose", 9, 4), ("code", 6, 6)]
    ]


@pytest.fixture(scope="module")
def recorded(model: Any) -> tuple[Any, list[MoeLayer], torch.Tensor, Recording]:
    layers = find_moe_layers(model)
    fitting = [torch.randint(0, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(1))]
    vectors, _ = fit_default_vectors(model, layers, fitting, EXPERTS)
    recording = record_requests(
        model, layers, sequences(), predictors=PREDICTORS, default_vectors=vectors, ranked=RANKED, all_scores=True
    )
    return model, layers, vectors, recording


def parallel(model: Any, tokens: list[int]) -> Any:
    """The whole sequence in one forward pass, without a cache: what decoding must agree with."""
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([tokens]), output_router_logits=True, output_hidden_states=True, use_cache=False
        )


def rows_of(recording: Recording, number: int) -> Any:
    return np.flatnonzero(recording.request == number)


def test_moe_layers_are_found_with_the_norm_that_feeds_them(model: Any) -> None:
    layers = find_moe_layers(model)
    expected = [1, 2, 4, 5] if model.config.model_type == "qwen3_moe" else [0, 1, 2, 3, 4]
    assert [layer.number for layer in layers] == expected
    for layer in layers:
        decoder = model.model.layers[layer.number]
        assert layer.norm is decoder.post_attention_layernorm
        assert layer.router is decoder.mlp.gate
        assert layer.experts is decoder.mlp.experts


def test_a_model_without_a_router_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no routed experts"):
        find_moe_layers(nn.Sequential(nn.Linear(2, 2)))


def test_ids_are_the_models_own_choice_through_prefill_and_decode(
    recorded: tuple[Any, list[MoeLayer], torch.Tensor, Recording],
) -> None:
    model, _, _, recording = recorded
    for number, sequence in enumerate(sequences()):
        logits = torch.stack(parallel(model, list(sequence.tokens)).router_logits, dim=1)
        chosen = logits.topk(TOP_K, dim=-1).indices.numpy()
        np.testing.assert_array_equal(recording.experts[rows_of(recording, number)], chosen)


def test_weights_and_scores_are_those_of_the_router(
    recorded: tuple[Any, list[MoeLayer], torch.Tensor, Recording],
) -> None:
    model, _, _, recording = recorded
    assert recording.scores is not None
    for number, sequence in enumerate(sequences()):
        rows = rows_of(recording, number)
        logits = torch.stack(parallel(model, list(sequence.tokens)).router_logits, dim=1).double().numpy()
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        heaviest = -np.sort(-probabilities, axis=-1)[..., :TOP_K]
        if model.config.norm_topk_prob:
            heaviest /= heaviest.sum(-1, keepdims=True)
        np.testing.assert_allclose(recording.weights[rows].astype(float), heaviest, rtol=2e-3)
        np.testing.assert_allclose(recording.scores[rows].astype(float), probabilities, rtol=2e-3, atol=1e-6)


def test_steps_positions_and_phases(recorded: tuple[Any, list[MoeLayer], torch.Tensor, Recording]) -> None:
    recording = recorded[-1]
    # Prompts of 5, 5, 4 and 6 in sequences of 14, 14, 9 and 6 tokens.
    assert recording.step.tolist() == (
        [0] * 5 + list(range(1, 10)) + [10] * 5 + list(range(11, 20)) + [20] * 4 + list(range(21, 26)) + [26] * 6
    )
    assert recording.position.tolist() == [*range(14), *range(14), *range(9), *range(6)]
    assert recording.request.tolist() == [0] * 14 + [1] * 14 + [2] * 9 + [3] * 6
    prompts = [5, 5, 4, 6]
    for phase, position, request in zip(recording.phase, recording.position, recording.request, strict=True):
        assert phase == (PREFILL if position < prompts[request] else DECODE)


def test_sequences_side_by_side_are_recorded_as_if_alone(model: Any) -> None:
    layers = find_moe_layers(model)
    together = record_requests(model, layers, sequences(), predictors=[RESIDUAL], ranked=RANKED)
    alone = [record_requests(model, layers, [each], predictors=[RESIDUAL], ranked=RANKED) for each in sequences()]
    np.testing.assert_array_equal(together.experts, np.concatenate([each.experts for each in alone]))
    rankings = [each.predicted[RESIDUAL][0] for each in alone]
    np.testing.assert_array_equal(together.predicted[RESIDUAL][0], np.concatenate(rankings))


def test_predictions_follow_their_definitions(
    recorded: tuple[Any, list[MoeLayer], torch.Tensor, Recording],
) -> None:
    """r_l is had another way than by the recorder's hooks: a layer's output less the output of its MoE block."""
    model, layers, vectors, recording = recorded
    outputs: dict[int, torch.Tensor] = {}
    handles = [
        layer.block.register_forward_hook(lambda _, __, out, n=layer.number: outputs.__setitem__(n, out[0]))
        for layer in layers
    ]
    after: dict[int, torch.Tensor] = {}
    handles.extend(
        decoder.register_forward_hook(
            lambda _, __, out, n=number: after.__setitem__(n, (out[0] if isinstance(out, tuple) else out)[0])
        )
        for number, decoder in enumerate(model.model.layers)
    )
    sequence = sequences()[0]
    parallel(model, list(sequence.tokens))
    for handle in handles:
        handle.remove()
    rows = rows_of(recording, 0)
    for index, (layer, following) in enumerate(pairwise(layers)):
        residual = (after[layer.number] - outputs[layer.number].view_as(after[layer.number])).detach().double().numpy()
        guess = residual.copy()
        for token in range(len(residual)):
            for slot in range(TOP_K):
                expert = int(recording.experts[rows[token], index, slot])
                guess[token] += float(recording.weights[rows[token], index, slot]) * vectors[index, expert].numpy()
        by_hand: dict[str, Callable[[], Any]] = {
            ROUTER_INPUT: lambda r=residual, own=layer: normed(r, own.norm),
            RESIDUAL: lambda r=residual, own=following: normed(r, own.norm),
            RESIDUAL_DEFAULT_VECTORS: lambda g=guess, own=following: normed(g, own.norm),
        }
        matrix = following.router.weight.detach().double().numpy()
        for name, query in by_hand.items():
            logits = query() @ matrix.T
            probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            ranking, scores = recording.predicted[name]
            assert scores is not None
            best = -np.sort(-probabilities, axis=-1)[:, :RANKED]
            np.testing.assert_allclose(scores[rows, index + 1].astype(float), best, rtol=4e-3, atol=1e-6)
            named = np.take_along_axis(probabilities, ranking[rows, index + 1].astype(int), axis=-1)
            np.testing.assert_allclose(named, best, rtol=1e-3)  # the same experts, but for ties


def normed(values: Any, norm: Any) -> Any:
    mean_square = (values**2).mean(-1, keepdims=True)
    return values / np.sqrt(mean_square + norm.variance_epsilon) * norm.weight.detach().double().numpy()


def test_the_first_layer_is_not_foreseen(recorded: tuple[Any, list[MoeLayer], torch.Tensor, Recording]) -> None:
    for ranking, scores in recorded[-1].predicted.values():
        assert (ranking[:, 0] == np.iinfo(ranking.dtype).max).all()
        assert scores is not None
        assert not scores[:, 0].any()
        assert (ranking[:, 1:] < EXPERTS).all()


def test_default_vectors_are_the_mean_outputs_of_the_experts(model: Any) -> None:
    layers = find_moe_layers(model)
    batches = [torch.randint(0, VOCABULARY, (2, 25), generator=torch.Generator().manual_seed(s)) for s in (7, 8)]
    vectors, counts = fit_default_vectors(model, layers, batches, EXPERTS)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    last = layers[-1]
    handle = last.router.register_forward_hook(lambda _, args, out: seen.append((args[0], out[2])))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch)
    handle.remove()
    for expert in range(EXPERTS):
        up_projection, down = last.experts.gate_up_proj[expert], last.experts.down_proj[expert]
        outputs = []
        for hidden, chosen in seen:
            for token in torch.nonzero((chosen == expert).any(-1)).flatten():
                gate, up = (up_projection @ hidden.view(-1, hidden.shape[-1])[token]).chunk(2)
                outputs.append(down @ (nn.functional.silu(gate) * up))
        assert counts[-1, expert] == len(outputs)
        expected = torch.stack(outputs).mean(0) if outputs else torch.zeros_like(vectors[-1, expert])
        torch.testing.assert_close(vectors[-1, expert], expected.detach(), rtol=1e-3, atol=1e-5)


def test_an_expert_that_was_never_chosen_has_a_vector_of_zeros() -> None:
    model = olmoe()
    layers = find_moe_layers(model)
    vectors, counts = fit_default_vectors(model, layers, [torch.tensor([[1]])], EXPERTS)
    assert (counts.sum(-1) == TOP_K).all()
    assert (vectors[counts == 0] == 0).all()
    assert (vectors[counts > 0] != 0).any(-1).all()


def test_no_hook_is_left_behind() -> None:
    model = olmoe()
    layers = find_moe_layers(model)
    fit_default_vectors(model, layers, [torch.tensor([[1, 2]])], EXPERTS)
    record_requests(model, layers, sequences()[-1:])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_recording_is_kept_whole_and_becomes_a_valid_trace(
    recorded: tuple[Any, list[MoeLayer], torch.Tensor, Recording], tmp_path: Path
) -> None:
    _, layers, _, recording = recorded
    recording.save(tmp_path / "recording.safetensors")
    again = Recording.load(tmp_path / "recording.safetensors")
    metadata = TraceMetadata(
        name="tiny", model="tiny", layers=len(layers), experts=EXPERTS, top_k=TOP_K,
        moe_layers=[layer.number for layer in layers],
        predictors={name: Availability(layer_offset=1, point="after attention", description="") for name in PREDICTORS},
        dataset="random", tokenizer="none", decoding="teacher-forced", recorder="moesim.record", recorder_version="0",
        licence="none", source="test",
    )
    again.trace(metadata).save(tmp_path / "trace.safetensors")
    trace = Trace.load(tmp_path / "trace.safetensors")
    trace.validate()
    for name, array in recording.trace(metadata).arrays().items():
        np.testing.assert_array_equal(trace.arrays()[name], array)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "no request"),
        ([TokenSequence("prose", [1, 2], 0)], {}, "a prompt of 0 tokens"),
        ([TokenSequence("prose", [1, 2], 3)], {}, "a prompt of 3 tokens in a sequence of 2"),
        ([TokenSequence("prose", [1, 2], 1)], {"predictors": ["residul"]}, "did you mean residual"),
        ([TokenSequence("prose", [1, 2], 1)], {"predictors": [RESIDUAL_DEFAULT_VECTORS]}, "needs default vectors"),
    ],
)
def test_bad_requests_are_refused_in_one_line(given: Any, options: Any, message: str) -> None:
    model = olmoe()
    with pytest.raises(InputError, match=message):
        record_requests(model, find_moe_layers(model), given, **options)
