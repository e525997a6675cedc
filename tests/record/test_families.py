"""Every family of routers against the model's own report, or against its published rule worked out again in numpy.

The oracle runs each sequence alone, in one pass without a cache; the recorder runs it padded, in a batch, through
prefill and decode. Ids must be equal exactly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moesim.record.decoding import Decoding, TokenSequence
from moesim.record.moe_layers import find_moe_layers
from moesim.record.recorder import record_batch
from moesim.record.recording import Recording, joined
from moesim.trace import DECODE, PREFILL
from tests.record.families import CONFIGS, VOCABULARY, build

DECODER_ONLY = [family for family in CONFIGS if family != "switch"]
LENGTHS = ((9, 4), (13, 7), (7, 7), (12, 2))

Routed = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Ids [N, K], weights [N, K] and scores [N, E] of one layer."""


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def heaviest(scores: NDArray[Any], k: int) -> NDArray[Any]:
    return np.argsort(-scores, axis=-1, kind="stable")[:, :k]


def by_weight(ids: NDArray[Any], weights: NDArray[Any], scores: NDArray[Any]) -> Routed:
    order = np.argsort(-weights, axis=-1, kind="stable")
    return np.take_along_axis(ids, order, -1), np.take_along_axis(weights, order, -1), scores


def in_best_groups(
    scores: NDArray[Any], worth: Callable[[NDArray[Any]], NDArray[Any]], groups: int, kept: int
) -> NDArray[np.bool_]:
    """[N, E]: true for the experts of the `kept` groups that are worth most."""
    grouped = scores.reshape(len(scores), groups, -1)
    best = heaviest(worth(grouped), kept)
    group_of = np.arange(scores.shape[-1]) // grouped.shape[-1]
    return np.stack([np.isin(group_of, row) for row in best])


def plain(config: Any, logits: NDArray[Any], _: Any) -> Routed:
    """OLMoE, Qwen, Mixtral, Granite, GPT-OSS: top-k of the softmax, renormalised or not."""
    scores = softmax(logits)
    ids = heaviest(scores, config.num_experts_per_tok)
    weights = np.take_along_axis(scores, ids, -1)
    if getattr(config, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdims=True)
    return by_weight(ids, weights, scores)


def deepseek_v2(config: Any, logits: NDArray[Any], _: Any) -> Routed:
    """Group-limited greedy (arXiv 2405.04434, §2.2.2): a group is worth its best expert."""
    scores = softmax(logits)
    allowed = in_best_groups(scores, lambda grouped: grouped.max(-1), config.n_group, config.topk_group)
    ids = heaviest(np.where(allowed, scores, -1), config.num_experts_per_tok)
    return by_weight(ids, config.routed_scaling_factor * np.take_along_axis(scores, ids, -1), scores)


def deepseek_v3(config: Any, logits: NDArray[Any], router: Any) -> Routed:
    """Sigmoid scores, chosen with a correction bias, a group is worth its two best (arXiv 2412.19437, §2.1.2)."""
    scores = 1 / (1 + np.exp(-logits))
    biased = scores + router.e_score_correction_bias.double().numpy()
    allowed = in_best_groups(
        biased, lambda grouped: -np.sort(-grouped, -1)[..., :2].sum(-1), config.n_group, config.topk_group
    )
    ids = heaviest(np.where(allowed, biased, -np.inf), config.num_experts_per_tok)
    weights = np.take_along_axis(scores, ids, -1)
    weights = config.routed_scaling_factor * weights / weights.sum(-1, keepdims=True)
    return by_weight(ids, weights, scores)


def phi_moe(config: Any, logits: NDArray[Any], _: Any) -> Routed:
    """SparseMixer (arXiv 2409.12136): the best, then the best of the rest, each softmaxed over its near equals."""
    near, ids, weights = 2 * config.router_jitter_noise, [], []
    left = logits.copy()
    for _ in range(2):
        best = left.max(-1, keepdims=True)
        close = (best - logits) / np.maximum(np.abs(logits), best) <= near
        ids.append(left.argmax(-1))
        weights.append(softmax(np.where(close, left, -np.inf)).max(-1))
        np.put_along_axis(left, ids[-1][:, None], -np.inf, -1)
    return by_weight(np.stack(ids, -1), np.stack(weights, -1), softmax(logits))


RULES: dict[str, Callable[[Any, NDArray[Any], Any], Routed]] = {
    "deepseek-v2": deepseek_v2, "deepseek-v3": deepseek_v3, "glm-4-moe": deepseek_v3, "phi-moe": phi_moe,
}


def sequences() -> list[TokenSequence]:
    random = np.random.default_rng(3)
    return [TokenSequence("text", random.integers(2, VOCABULARY, tokens).tolist(), p) for tokens, p in LENGTHS]


def record(model: Any, requests: list[TokenSequence], max_new_tokens: int = 0) -> Recording:
    decoding = Decoding(max_new_tokens)
    return joined(list(record_batch(model, find_moe_layers(model), requests, decoding, all_scores=True)))


def router_inputs(model: Any, **given: Any) -> tuple[list[torch.Tensor], Any]:
    """What enters each router in one pass, kept by hooks of our own, and what the model returns."""
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2).double()))
        for layer in find_moe_layers(model)
    ]
    with torch.no_grad():
        output = model(**given)
    for hook in hooks:
        hook.remove()
    return inputs, output


def router_logits(model: Any, tokens: list[int]) -> NDArray[Any]:
    """[L, N, E]: each router's weight matrix times its input, and equal to what the model reports, where it does."""
    inputs, output = router_inputs(model, input_ids=torch.tensor([tokens]), use_cache=False, **reported(model))
    found = []
    for given, layer in zip(inputs, find_moe_layers(model), strict=True):
        bias = getattr(layer.router, "bias", None)
        logits = given @ layer.router.weight.detach().double().T
        found.append(logits if bias is None else logits + bias.detach().double())
    if getattr(output, "router_logits", None) is not None:
        torch.testing.assert_close(torch.stack(output.router_logits).double(), torch.stack(found), rtol=1e-4, atol=1e-4)
    return torch.stack(found).numpy()


def reported(model: Any) -> dict[str, bool]:
    return {"output_router_logits": True} if hasattr(model.config, "output_router_logits") else {}


@pytest.fixture(params=DECODER_ONLY, scope="module")
def family(request: pytest.FixtureRequest) -> tuple[str, Any, Recording]:
    model = build(request.param)
    return request.param, model, record(model, sequences())


def test_ids_weights_and_scores_are_those_of_the_families_rule(family: tuple[str, Any, Recording]) -> None:
    name, model, recording = family
    routers = [layer.router for layer in find_moe_layers(model)]
    for number, sequence in enumerate(sequences()):
        rows = np.flatnonzero(recording.request == number)
        assert recording.position[rows].tolist() == list(range(len(sequence.tokens)))
        all_logits = router_logits(model, list(sequence.tokens))
        for layer, (logits, router) in enumerate(zip(all_logits, routers, strict=True)):
            ids, weights, scores = RULES.get(name, plain)(model.config, logits, router)
            np.testing.assert_array_equal(recording.experts[rows, layer], ids)
            np.testing.assert_allclose(recording.weights[rows, layer].astype(float), weights, rtol=2e-3, atol=1e-5)
            assert recording.scores is not None
            np.testing.assert_allclose(recording.scores[rows, layer].astype(float), scores, rtol=2e-3, atol=1e-5)


def test_a_batch_shares_its_steps(family: tuple[str, Any, Recording]) -> None:
    _, _, recording = family
    # Four prompts in one pass; then 5, 6, 0 and 10 further tokens.
    assert recording.step.tolist() == [0] * 20 + [step for step in range(1, 11) for _ in range(
        3 if step <= 5 else 2 if step == 6 else 1
    )]
    assert ((recording.phase == PREFILL) == (recording.step == 0)).all()


def test_greedy_decoding_is_the_models_own_generation(family: tuple[str, Any, Recording]) -> None:
    _, model, _ = family
    prompts = [list(each.tokens[: each.prompt_tokens]) for each in sequences()]
    own = [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, pad_token_id=0)[0].tolist()
        for prompt in prompts
    ]
    chosen = record(model, [TokenSequence("text", p, len(p)) for p in prompts], max_new_tokens=6)
    forced = record(model, [TokenSequence("text", t[:-1], len(p)) for t, p in zip(own, prompts, strict=True)])
    for name, array in forced.arrays().items():
        np.testing.assert_array_equal(chosen.arrays()[name], array)
    assert (chosen.phase == DECODE).sum() == 4 * 5


def test_switch_reports_one_expert_a_token_in_encoder_and_decoder() -> None:
    model = build("switch")
    layers = find_moe_layers(model)
    assert [(layer.number, layer.in_encoder) for layer in layers] == [(1, True), (3, True), (5, False), (7, False)]
    requests = sequences()
    recording = record(model, requests)
    for number, sequence in enumerate(requests):
        prompt = list(sequence.tokens[: sequence.prompt_tokens])
        fed = [model.config.decoder_start_token_id, *sequence.tokens[sequence.prompt_tokens :]]
        # Its `output_router_logits` fails in transformers 5.17, so the rule (arXiv 2101.03961, §2.1) is worked out.
        inputs, _ = router_inputs(
            model, input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([fed])
        )
        rows = np.flatnonzero(recording.request == number)
        assert recording.position[rows].tolist() == list(range(len(prompt) + len(fed)))
        encoder, decoder = rows[: len(prompt)], rows[len(prompt) :]
        assert (recording.phase[encoder] == PREFILL).all()
        assert (recording.phase[decoder] == DECODE).all()
        # A token passes through the layers of its own side alone.
        assert (recording.experts[encoder, 2:] == 255).all()
        assert (recording.experts[decoder, :2] == 255).all()
        assert recording.scores is not None
        for at, (layer, given) in enumerate(zip(layers, inputs, strict=True)):
            scores = softmax((given @ layer.router.classifier.weight.detach().double().T).numpy())
            own = encoder if layer.in_encoder else decoder
            np.testing.assert_array_equal(recording.experts[own, at, 0], scores.argmax(-1))
            np.testing.assert_allclose(recording.weights[own, at, 0].astype(float), scores.max(-1), rtol=2e-3)
            np.testing.assert_allclose(recording.scores[own, at].astype(float), scores, rtol=2e-3, atol=1e-5)
