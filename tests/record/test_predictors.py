"""Every predictor against a recomputation by hand, from states had another way than by hooks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.captured_batches import captured_batches
from moesim.record.predictors.default_vectors import fit_default_vectors
from moesim.record.predictors.estimator import Estimator, EstimatorNet
from moesim.record.predictors.hybrid import Hybrid
from moesim.record.predictors.pre_attention import PreAttention, nets_from_tensors, pre_attention_net
from moesim.record.predictors.predictor import foresee
from moesim.record.predictors.residual import Residual
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.record.predictors.router_input import RouterInput
from tests.record.families import CONFIGS, build
from tests.record.tiny_models import EXPERTS, TOP_K, VOCABULARY, olmoe, qwen3

MODELS = {"olmoe": olmoe, "qwen3": qwen3}
TOKENS = torch.randint(0, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(2))
HIDDEN = 32


@pytest.fixture(params=MODELS, scope="module")
def seen(request: pytest.FixtureRequest) -> Any:
    """A model, its layers, what was captured of TOKENS, and by layer the residual stream and the attention's input."""
    model = MODELS[request.param]()
    layers = find_moe_layers(model)
    (captured,) = captured_batches(model, layers, [TOKENS], attention_input=True)
    with torch.no_grad():
        output = model(input_ids=TOKENS, output_hidden_states=True, output_router_logits=True, use_cache=False)
    residual, attention_input = [], []
    for layer in layers:
        decoder, entering = model.model.layers[layer.number], output.hidden_states[layer.number]
        normed = decoder.input_layernorm(entering)
        attention_input.append(normed.detach().flatten(0, 1))
        positions = torch.arange(TOKENS.shape[1])[None]
        mask = torch.full((1, 1, TOKENS.shape[1], TOKENS.shape[1]), -torch.inf).triu(1)
        with torch.no_grad():
            attended = decoder.self_attn(
                hidden_states=normed, attention_mask=mask,
                position_embeddings=model.model.rotary_emb(entering, positions),
            )[0]
        residual.append((entering + attended).detach().flatten(0, 1))
    return model, layers, captured, residual, attention_input, output.router_logits


def probabilities(layer: Any, query: Any) -> Any:
    """Softmax of the router's matrix times the query, in float64."""
    logits = query.double().numpy() @ layer.router.weight.detach().double().numpy().T
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def rms_normed(layer: Any, states: Any) -> Any:
    states = states.double()
    scaled = states / (states.pow(2).mean(-1, keepdim=True) + layer.norm.variance_epsilon).sqrt()
    return scaled * layer.norm.weight.detach().double()


def assert_close(found: torch.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=1e-5)


def vectors_of(seen: Any) -> torch.Tensor:
    return torch.randn(len(seen[1]), EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_residual_goes_through_the_norm_and_router_of_the_layer_ahead(seen: Any, ahead: int) -> None:
    _, layers, captured, residual, _, _ = seen
    predictor = Residual(layers, ahead)
    assert predictor.availability.layer_offset == ahead
    predicted = foresee(predictor, captured)
    assert (predicted[:ahead] == 0).all()
    for target in range(ahead, len(layers)):
        query = rms_normed(layers[target], residual[target - ahead])
        assert_close(predicted[target], probabilities(layers[target], query))


def test_one_layer_ahead_is_called_residual(seen: Any) -> None:
    assert Residual(seen[1]).name == "residual"
    assert Residual(seen[1], 2).name == "residual-2-ahead"
    with pytest.raises(InputError, match="9 layers ahead"):
        Residual(seen[1], 9)


def test_router_input_is_given_on_as_it_is(seen: Any) -> None:
    _, layers, captured, residual, _, _ = seen
    predicted = foresee(RouterInput(layers), captured)
    for target in range(1, len(layers)):
        query = rms_normed(layers[target - 1], residual[target - 1])
        assert_close(predicted[target], probabilities(layers[target], query))


def by_hand_queries(seen: Any, vectors: torch.Tensor) -> list[Any]:
    """q_l for every layer but the last, one token and one expert at a time."""
    model, layers, _, residual, _, router_logits = seen
    queries = []
    for index in range(len(layers) - 1):
        guess = residual[index].double().clone()
        scores = router_logits[index].double().softmax(-1)
        for token in range(len(guess)):
            weights, chosen = scores[token].topk(TOP_K)
            if model.config.norm_topk_prob:
                weights = weights / weights.sum()
            for weight, expert in zip(weights, chosen, strict=True):
                guess[token] += weight * vectors[index, expert].double()
        queries.append(rms_normed(layers[index + 1], guess))
    return queries


def test_default_vectors_are_added_by_gate_weight(seen: Any) -> None:
    _, layers, captured, _, _, _ = seen
    vectors = vectors_of(seen)
    predicted = foresee(ResidualDefaultVectors(layers, vectors), captured)
    for target, query in enumerate(by_hand_queries(seen, vectors), start=1):
        assert_close(predicted[target], probabilities(layers[target], query))
    with pytest.raises(InputError, match="default vectors of 1 layers"):
        ResidualDefaultVectors(layers, vectors[:1])


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "switch"])
def test_the_vectors_of_one_token_add_up_to_its_experts_output(family: str) -> None:
    """Fitted on a single token, weight × vector over its experts is the very output of the model's experts module."""
    model = build(family)
    layers, token = find_moe_layers(model), torch.tensor([[7]])
    vectors, _ = fit_default_vectors(model, layers, [token], layers[0].layout.n_experts)
    outputs: list[torch.Tensor] = []
    handles = [
        layer.experts.register_forward_hook(lambda _, __, out: outputs.append(out[0].view(-1))) for layer in layers
    ]
    (captured,) = captured_batches(model, layers, [token])
    for handle in handles:
        handle.remove()
    for index, output in enumerate(outputs):
        added = captured.weights[index, 0] @ vectors[index][captured.experts[index, 0]]
        torch.testing.assert_close(added, output.detach(), rtol=1e-4, atol=1e-5)


def test_experts_that_take_one_hot_rows_have_no_default_vectors() -> None:
    model = build("switch")
    with pytest.raises(InputError, match="SwitchTransformersExperts is not called with a row of ids"):
        fit_default_vectors(model, find_moe_layers(model), [torch.tensor([[7, 8]])], 12)


def test_vectors_of_zeros_change_nothing(seen: Any) -> None:
    _, layers, captured, _, _, _ = seen
    zeros = ResidualDefaultVectors(layers, torch.zeros(len(layers), EXPERTS, HIDDEN))
    torch.testing.assert_close(foresee(zeros, captured), foresee(Residual(layers), captured))


def net(layers: int) -> EstimatorNet:
    torch.manual_seed(4)
    made = EstimatorNet(HIDDEN, layers, EXPERTS, reduction=4, expansion=3).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.5)
    return made


def test_the_estimator_is_its_formula(seen: Any) -> None:
    _, layers, captured, _, _, _ = seen
    vectors, made = vectors_of(seen), net(len(layers))
    base = ResidualDefaultVectors(layers, vectors)
    predicted = foresee(Estimator(base, made), captured)
    w = {name: tensor.double() for name, tensor in made.state_dict().items()}
    assert w["enter.weight"].shape == (HIDDEN // 4, HIDDEN)
    assert w["expand.weight"].shape == (3 * HIDDEN // 4, HIDDEN // 4)
    for target, query in enumerate(by_hand_queries(seen, vectors), start=1):
        h = query @ w["enter.weight"].T + w["enter.bias"] + w["layer.weight"][target]
        inner = h @ w["expand.weight"].T + w["expand.bias"]
        h = h + (inner / (1 + (-inner).exp())) @ w["contract.weight"].T + w["contract.bias"]
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        h = h * w["norm.weight"] + w["norm.bias"]
        logits = h @ w["leave.weight"].T + w["leave.bias"]
        assert_close(predicted[target], logits.softmax(-1).numpy())


def test_the_hybrid_takes_each_layer_from_whom_it_is_told(seen: Any) -> None:
    _, layers, captured, _, _, _ = seen
    base = ResidualDefaultVectors(layers, vectors_of(seen))
    estimator = Estimator(base, net(len(layers)))
    predicted = foresee(Hybrid(base, estimator, [2]), captured)
    own, routers = foresee(estimator, captured), foresee(base, captured)
    assert not torch.equal(own[2], routers[2])
    for index in range(len(layers)):
        torch.testing.assert_close(predicted[index], (own if index == 2 else routers)[index])


@pytest.mark.parametrize("architecture", ["arch1", "arch2"])
def test_pre_attention_reads_the_input_of_the_layers_own_attention(seen: Any, architecture: str) -> None:
    _, layers, captured, _, attention_input, _ = seen
    torch.manual_seed(1)
    nets = [pre_attention_net(architecture, HIDDEN, EXPERTS, 24).eval() for _ in layers]
    with torch.no_grad():
        for each in nets:
            for tensor in each.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.2, 1.0)
    predicted = foresee(PreAttention(nets, architecture), captured)
    for index, given in enumerate(attention_input):
        w = {name: tensor.double() for name, tensor in nets[index].state_dict().items()}
        h = given.double() @ w["0.weight"].T + w["0.bias"]
        if architecture == "arch1":
            h = (h - w["1.running_mean"]) / (w["1.running_var"] + 1e-5).sqrt() * w["1.weight"] + w["1.bias"]
            h = nn.functional.gelu(h) @ w["4.weight"].T + w["4.bias"]
        else:
            h = h * h.sigmoid() @ w["2.weight"].T + w["2.bias"]
        assert_close(predicted[index], h.softmax(-1).numpy())
    kept = {f"{i}.{name}": tensor for i, each in enumerate(nets) for name, tensor in each.state_dict().items()}
    again = PreAttention(nets_from_tensors(kept, architecture), architecture)
    torch.testing.assert_close(foresee(again, captured), predicted)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean arch2 or arch1"):
        pre_attention_net("arch", HIDDEN, EXPERTS)


def test_where_attention_and_experts_add_nothing_the_residual_stream_tells_all() -> None:
    model = olmoe()
    layers = find_moe_layers(model)
    with torch.no_grad():
        for decoder in model.model.layers:
            decoder.self_attn.o_proj.weight.zero_()
            decoder.mlp.experts.down_proj.zero_()
    vectors, _ = fit_default_vectors(model, layers, [TOKENS], EXPERTS)
    (captured,) = captured_batches(model, layers, [TOKENS])
    for predictor in (Residual(layers), ResidualDefaultVectors(layers, vectors)):
        torch.testing.assert_close(foresee(predictor, captured)[1:], captured.probabilities[1:])
