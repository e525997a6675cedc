"""The self-draft: without rounding it is the model itself; rounded, it is a copy whose weights were rounded by hand."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.rounded_experts import RoundedExperts, rounded
from moesim.record.predictors.self_draft import availability, draft
from moesim.record.recorder import TokenSequence
from tests.record.tiny_models import TOP_K, olmoe, qwen3

PROMPT, LENGTH, AHEAD = 4, 9, 3


@pytest.fixture(params=[olmoe, qwen3], scope="module")
def greedy(request: pytest.FixtureRequest) -> Any:
    """A model and two requests that go on as it would itself, greedily, and one that does not."""
    model = request.param()
    requests = []
    for seed in (0, 1):
        tokens = torch.randint(0, 97, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
        for _ in range(LENGTH - PROMPT):
            with torch.no_grad():
                following = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(-1)
            tokens = torch.cat([tokens, following[None]], dim=1)
        requests.append(TokenSequence("greedy", tokens[0].tolist(), PROMPT))
    other = [(token * 31 + at * 7) % 97 for at, token in enumerate(requests[0].tokens[: LENGTH - 1])]
    return model, find_moe_layers(model), [*requests, TokenSequence("forced", other, PROMPT)]


def chosen(model: Any, tokens: Any) -> torch.Tensor:
    """[tokens, L, k]: the model's own choice, in one pass without a cache."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(tokens)]), output_router_logits=True, use_cache=False)
    return torch.stack(output.router_logits, dim=1).topk(TOP_K, dim=-1).indices


def test_without_rounding_the_draft_is_the_model(greedy: Any) -> None:
    model, layers, requests = greedy
    found = draft(model, layers, requests, tokens_ahead=AHEAD, bits=None)
    assert found.names() == ["self-draft-1", "self-draft-2", "self-draft-3"]
    first = 0
    for request in requests:
        true = chosen(model, request.tokens)
        for ahead, probabilities in enumerate(found.probabilities):
            rows = probabilities[first : first + len(request.tokens)]
            assert (rows[: PROMPT + ahead] == 0).all()
            if request.kind == "greedy" or ahead == 0:
                named = rows[PROMPT + ahead :].topk(TOP_K, dim=-1).indices
                assert torch.equal(named, true[PROMPT + ahead :])
        first += len(request.tokens)
    assert first == len(found.probabilities[0])


def test_drafts_follow_a_greedy_trace_and_leave_a_forced_one(greedy: Any) -> None:
    model, layers, requests = greedy
    assert draft(model, layers, requests[:2], tokens_ahead=AHEAD, bits=None).followed == [1.0, 1.0, 1.0]
    followed = draft(model, layers, requests[2:], tokens_ahead=AHEAD, bits=None).followed
    assert followed[0] == 1.0
    assert followed[2] <= followed[1] < 1.0


def test_a_rounded_draft_starts_from_the_models_own_keys_and_values(greedy: Any) -> None:
    """Two bits, and by hand: the true model's cache of the prefix, then a rounded copy of the model on one token."""
    model, layers, requests = greedy
    found = draft(model, layers, requests[:1], tokens_ahead=1, bits=2, group=8).probabilities[0]
    copy = deepcopy(model)
    with torch.no_grad():
        for decoder in copy.model.layers:
            for name in ("gate_up_proj", "down_proj"):
                weights = getattr(getattr(decoder.mlp, "experts", None), name, None)
                if weights is not None:
                    weights.copy_(by_hand(weights, 2, 8))
    tokens = torch.tensor([list(requests[0].tokens)])
    differs = False
    for place in range(PROMPT, LENGTH):
        with torch.no_grad():
            cache = model(input_ids=tokens[:, :place], use_cache=True).past_key_values
            output = copy(input_ids=tokens[:, place : place + 1], past_key_values=cache, output_router_logits=True)
        expected = torch.stack(output.router_logits, dim=1)[0].softmax(-1)
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-5)
        differs |= not torch.allclose(found[place][-1], true_probabilities(model, tokens[:, : place + 1]), atol=1e-3)
    assert differs, "two bits change what the last router sees"


def true_probabilities(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=tokens, output_router_logits=True, use_cache=False).router_logits
    result: torch.Tensor = logits[-1][-1].softmax(-1)
    return result


def by_hand(weights: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Each weight goes to the nearest of the even levels of its group, found by trying all of them."""
    result = weights.detach().clone()
    for row in result.view(-1, weights.shape[-1]):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            levels = torch.linspace(float(part.min()), float(part.max()), 2**bits)
            part.copy_(levels[(part[:, None] - levels[None]).abs().argmin(1)])
    return result


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 5), st.integers(0, 99))
def test_rounding_goes_to_the_nearest_level_of_the_group(length: int, group: int, bits: int, seed: int) -> None:
    weights = torch.randn(3, length, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rounded(weights, bits, group), by_hand(weights, bits, group), rtol=1e-4, atol=1e-5)


def test_the_true_weights_come_back_even_after_an_error() -> None:
    model = olmoe()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coarse = RoundedExperts(find_moe_layers(model), 4, 32)

    def interrupted() -> None:
        with coarse.in_place():
            assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_to_draft_is_refused(greedy: Any) -> None:
    with pytest.raises(InputError, match="both are at least 1"):
        draft(greedy[0], greedy[1], [])
    assert "int4 experts (groups of 32) on the 2. token" in availability(2).description
