"""Modes on tiny random models, against the plain model, recomputations by hand and each other."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from moesim.errors import InputError
from moesim.quality.measure import NLL, TOKENS, Layout, measure
from moesim.quality.modes.cache_prior import CachePrior
from moesim.quality.modes.drop import Drop
from moesim.quality.modes.low_precision import LowPrecision
from moesim.quality.modes.max_rank import CumulativeThreshold, MaxRank
from moesim.quality.modes.open_loop import OpenLoop
from moesim.quality.modes.resident_execute import ResidentExecute
from moesim.quality.modes.speculate_and_execute import SpeculateAndExecute
from moesim.quality.modes.substitute import Substitute
from moesim.quality.modes.true_routing import TrueRouting
from moesim.quality.replaced_routing import ReplacedRouting
from moesim.record.capture import RouterCapture
from tests.quality.settings import (
    LANES,
    LENGTH,
    PROMPT,
    Oracle,
    default_vectors,
    foresights,
    logits_of,
    model_and_layers,
    tokens,
)

BOTH = pytest.mark.parametrize("name", ["olmoe", "qwen3"])


def cached_modes(name, fraction):
    _, layers = model_and_layers(name)
    feeding = foresights(name)[-1]
    return [
        ResidentExecute(layers, feeding, fraction, default_vectors(name)),
        Drop(layers, feeding, fraction),
        Drop(layers, feeding, fraction, renormalise=True),
        Substitute(layers, feeding, fraction),
        Substitute(layers, feeding, fraction, "own"),
        LowPrecision(layers, fraction),
        CachePrior(layers, fraction, strength=0.5, keep=1),
        MaxRank(layers, fraction),
        CumulativeThreshold(layers, fraction),
    ]


@torch.inference_mode()
def captured(name, given):
    model, layers = model_and_layers(name)
    with RouterCapture(layers) as capture:
        model(input_ids=given, use_cache=False)
        return capture.take()


@BOTH
def test_speculation_off_is_the_plain_model_to_the_last_bit(name):
    model, _ = model_and_layers(name)
    given = tokens()
    with torch.inference_mode():
        plain = model(input_ids=given).logits
        cache = DynamicCache()
        model(input_ids=given[:, :PROMPT], past_key_values=cache)
        steps = [
            model(input_ids=given[:, at : at + 1], past_key_values=cache).logits for at in range(PROMPT, LENGTH - 1)
        ]
    assert torch.equal(logits_of(name, TrueRouting()), plain[:, PROMPT:-1])
    assert torch.equal(logits_of(name, TrueRouting(stepped=True)), torch.cat(steps, dim=1))


@BOTH
def test_the_hooks_leave_the_model_as_it_was(name):
    model, layers = model_and_layers(name)
    before = logits_of(name, None)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in [*cached_modes(name, 0.4), LowPrecision(layers, None, bits=4, high=-1, low=1)]:
        logits_of(name, mode)
    assert torch.equal(logits_of(name, None), before)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@BOTH
def test_a_perfect_prediction_is_true_routing(name):
    _, layers = model_and_layers(name)
    oracle = Oracle(captured(name, tokens()).logits)
    for mode in (SpeculateAndExecute(layers, oracle), SpeculateAndExecute(layers, oracle, 2, 3)):
        assert torch.equal(logits_of(name, mode), logits_of(name, None))


@BOTH
def test_speculation_executes_what_the_next_router_makes_of_the_prediction(name):
    """Recomputed layer by layer from the states that the speculated run itself shows."""
    _, layers = model_and_layers(name)
    given = tokens()
    decoded = (torch.arange(LENGTH) >= PROMPT).repeat(LANES)
    vectors = default_vectors(name)
    for number, foresight in enumerate(foresights(name)):
        mode = SpeculateAndExecute(layers, foresight)
        seen = [{} for _ in layers]
        handles = []
        for layer, entry in zip(layers, seen, strict=True):

            def keep_residual(_, args, entry=entry):
                entry["residual"] = args[0].flatten(0, -2)  # the layer's own comes after any that a predictor asks for

            def keep_executed(_, args, entry=entry):
                entry.update(input=args[0], ids=args[1], weights=args[2])

            handles.append(layer.norm.register_forward_pre_hook(keep_residual))
            handles.append(layer.experts.register_forward_pre_hook(keep_executed))
        try:
            logits_of(name, mode, given)
        finally:
            for handle in handles:
                handle.remove()
        with torch.inference_mode():
            for before, layer, here in zip(seen[:-1], layers[1:], seen[1:], strict=True):
                added = (before["weights"][..., None] * vectors[layers.index(layer) - 1][before["ids"]]).sum(1)
                residual = before["residual"]
                query = [before["input"], layer.norm(residual), layer.norm(residual + added)][number]
                scores = (query @ layer.router.weight.T).softmax(-1)
                top = scores.topk(here["ids"].shape[-1])
                values = top.values / top.values.sum(-1, keepdim=True) if name == "qwen3" else top.values
                assert torch.equal(here["ids"][decoded], top.indices[decoded])
                assert torch.allclose(here["weights"][decoded], values[decoded], atol=1e-6)
                true = (here["input"] @ layer.router.weight.T).softmax(-1).topk(here["ids"].shape[-1]).indices
                assert torch.equal(here["ids"][~decoded], true[~decoded])
                assert not torch.equal(here["ids"][decoded], true[decoded]), "the prediction must not be the truth"


@BOTH
def test_one_pass_and_token_by_token_are_the_same_without_a_cache(name):
    _, layers = model_and_layers(name)
    modes = [SpeculateAndExecute(layers, each) for each in foresights(name)]
    modes += [SpeculateAndExecute(layers, foresights(name)[1], 3), LowPrecision(layers, None)]
    for mode in modes:
        whole, stepped = logits_of(name, mode), logits_of(name, mode, stepped=True)
        assert torch.allclose(whole, stepped, atol=1e-4)
        assert not torch.allclose(whole, logits_of(name, None), atol=1e-2)


@BOTH
def test_both_loops_agree_where_one_layer_is_speculated_and_differ_where_all_are(name):
    _, layers = model_and_layers(name)
    states = captured(name, tokens())
    foresight = foresights(name)[-1]

    def open_loop(*stretch):
        mode = OpenLoop(layers, foresight, *stretch)
        mode.see(states)
        return logits_of(name, mode)

    for layer in range(1, len(layers)):
        closed = logits_of(name, SpeculateAndExecute(layers, foresight, layer, layer))
        assert torch.allclose(closed, open_loop(layer, layer), atol=1e-5)
    assert not torch.allclose(logits_of(name, SpeculateAndExecute(layers, foresight)), open_loop(), atol=1e-2)


@BOTH
def test_with_a_slot_for_every_expert_nothing_changes(name):
    true = logits_of(name, None, stepped=True)
    for mode in cached_modes(name, 1.0):
        assert torch.equal(logits_of(name, mode), true), mode.name


@BOTH
def test_with_fewer_slots_something_changes(name):
    true = logits_of(name, None, stepped=True)
    for mode in cached_modes(name, 0.3):
        assert not torch.allclose(logits_of(name, mode), true, atol=1e-2), mode.name


def test_lanes_do_not_see_each_other():
    """Each lane has its own cache: alone it computes what it computed beside others."""
    given = tokens(2, 14)
    for beside, alone in zip(cached_modes("olmoe", 0.3), cached_modes("olmoe", 0.3), strict=True):
        whole = logits_of("olmoe", beside, given)
        for lane in range(2):
            assert torch.allclose(logits_of("olmoe", alone, given[lane : lane + 1])[0], whole[lane], atol=1e-4)


@BOTH
def test_rounding_all_experts_is_a_model_with_rounded_weights(name):
    """A copy of the model whose matrices were rounded group by group, one number after another."""
    model, layers = model_and_layers(name)
    mode = LowPrecision(layers, None, bits=4, high=-1, low=1)
    twin = copy.deepcopy(model)
    for parameter_name, parameter in twin.named_parameters():
        if ".experts." not in parameter_name:
            continue
        for row in parameter.data.view(-1, parameter.shape[-1]):
            for start in range(0, len(row), 32):
                group = row[start : start + 32]
                least, largest = min(group.tolist()), max(group.tolist())
                step = (largest - least) / 15
                group.copy_(torch.tensor([least + step * round((each - least) / step) for each in group.tolist()]))
    # The twin rounds the prompt's experts too, so it is compared where there is no more prompt than one token can be.
    with torch.inference_mode():
        expected = twin(input_ids=tokens()).logits
        mode.begin(LANES)
        with ReplacedRouting(layers, mode) as replaced:
            replaced.decoding = torch.ones(LANES * LENGTH, dtype=torch.bool)
            got = model(input_ids=tokens()).logits
    assert torch.allclose(got, expected, atol=1e-4)
    assert not torch.allclose(got, model(input_ids=tokens()).logits, atol=1e-2)


def test_a_stretch_that_the_model_lacks_is_refused():
    _, layers = model_and_layers("olmoe")
    with pytest.raises(InputError, match="1 to 4 can be speculated"):
        SpeculateAndExecute(layers, foresights("olmoe")[0], 5)
    with pytest.raises(InputError, match="fewer slots than the model's top-k 3"):
        Drop(layers, foresights("olmoe")[0], 0.04)


def test_perplexity_is_the_models_own_loss():
    """cross_entropy of transformers' logits over the same targets."""
    model, layers = model_and_layers("olmoe")
    given = tokens(4)
    sums = measure(model, layers, [TrueRouting(), TrueRouting(stepped=True)], given.numpy(), Layout(PROMPT, 0, 2))
    with torch.inference_mode():
        logits = model(input_ids=given).logits[:, PROMPT:-1]
    for each in sums:
        for block in range(4):
            loss = cross_entropy(logits[block].double(), given[block, PROMPT + 1 :], reduction="sum").item()
            assert each[block, NLL] == pytest.approx(loss, rel=1e-6)
            assert each[block, TOKENS] == LENGTH - 1 - PROMPT
