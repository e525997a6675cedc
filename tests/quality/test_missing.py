"""What becomes of missing experts, on one event with numbers made by hand."""

import pytest
import torch

from moesim.errors import InputError
from moesim.quality.modes.drop import Drop
from moesim.quality.modes.low_precision import LowPrecision
from moesim.quality.modes.mode import Event
from moesim.quality.modes.resident_execute import ResidentExecute
from moesim.quality.modes.substitute import Substitute
from tests.quality.settings import default_vectors, foresights, logits_of, model_and_layers
from tests.record.tiny_models import EXPERTS

# Token 0 chose experts 4, 2, 7; token 1 chose 0, 1, 9.
CHOSEN = torch.tensor([[4, 2, 7], [0, 1, 9]])
WEIGHTS = torch.tensor([[0.5, 0.3, 0.1], [0.2, 0.6, 0.1]])
PRESENT = torch.tensor([[True, False, False], [False, False, False]])
RESIDENT = torch.zeros(2, EXPERTS, dtype=torch.bool)
RESIDENT[0, [4, 5, 6, 11]] = True
RESIDENT[1, [3]] = True
LOGITS = torch.arange(EXPERTS).float().repeat(2, 1)  # the higher the number, the better


def event(layer=2):
    return Event(layer, None, torch.zeros(2, 32), LOGITS, CHOSEN, WEIGHTS)


def by_id(execution, token):
    pairs = zip(execution.experts[token].tolist(), execution.weights[token].tolist(), strict=True)
    return {expert: pytest.approx(weight) for expert, weight in pairs if weight}


def made(kind, *arguments, **named):
    name = "olmoe"
    _, layers = model_and_layers(name)
    return kind(layers, foresights(name)[-1], 0.4, *arguments, **named)


def test_drop_leaves_the_missing_out():
    execution = made(Drop).missing(event(), PRESENT, RESIDENT)
    assert (by_id(execution, 0), by_id(execution, 1)) == ({4: 0.5}, {})


def test_drop_renormalised_keeps_the_tokens_whole_weight():
    execution = made(Drop, renormalise=True).missing(event(), PRESENT, RESIDENT)
    assert (by_id(execution, 0), by_id(execution, 1)) == ({4: 0.9}, {})
    two = made(Drop, renormalise=True).missing(event(), torch.tensor([[True, False, True], [True] * 3]), RESIDENT)
    assert by_id(two, 0) == {4: 0.75, 7: 0.15}
    assert torch.equal(two.weights[1], WEIGHTS[1])


def test_a_default_vector_has_the_weight_of_whom_it_stands_in_for():
    execution = made(ResidentExecute, default_vectors("olmoe")).missing(event(), PRESENT, RESIDENT)
    assert (by_id(execution, 0), by_id(execution, 1)) == ({4: 0.5}, {})
    vectors = default_vectors("olmoe")[2]
    assert execution.added is not None
    added = execution.added(2, torch.zeros(2, 32))
    assert torch.allclose(added[0], 0.3 * vectors[2] + 0.1 * vectors[7])
    assert torch.allclose(added[1], 0.2 * vectors[0] + 0.6 * vectors[1] + 0.1 * vectors[9])


def test_substitutes_are_the_best_scored_residents_heaviest_first():
    execution = made(Substitute).missing(event(), PRESENT, RESIDENT)
    # of 2 and 7, missing, 2 is heavier: it gets 11, the best; 7 gets 6. Token 1 has one resident: expert 1 gets it.
    assert by_id(execution, 0) == {4: 0.5, 11: 0.3, 6: 0.1}
    assert by_id(execution, 1) == {3: 0.6}


def test_substitutes_with_weights_of_their_own():
    """OLMoE's gate weights are the softmax over all experts, as it is."""
    execution = made(Substitute, "own").missing(event(), PRESENT, RESIDENT)
    share = LOGITS[0].softmax(-1).tolist()
    assert by_id(execution, 0) == {expert: pytest.approx(share[expert], rel=1e-3) for expert in (4, 11, 6)}
    whole = made(Substitute, "own").missing(event(), torch.ones(2, 3, dtype=torch.bool), RESIDENT)
    assert torch.equal(whole.weights, WEIGHTS)


def test_low_precision_by_the_weight_of_the_heavier_ones():
    """Token 0: G = 5/9, 3/9, 1/9, so s = 0, 0.56, 0.89: full, full, rounded. Token 1: s = 0.67, 0, 0.89."""
    _, layers = model_and_layers("olmoe")
    mode = LowPrecision(layers, None)
    execution = mode.execute(event())
    assert by_id(execution, 0) == {4: 0.5, 2: 0.3}
    assert by_id(execution, 1) == {1: 0.6}
    assert execution.added is not None
    strict = LowPrecision(layers, None, high=0.5, low=0.6).execute(event())
    assert by_id(strict, 0) == {4: 0.5}
    assert mode.weight_executed == pytest.approx((0.8 + 0.6) / 1.8)


def test_low_precision_spares_residents_and_keeps_what_it_fetched():
    _, layers = model_and_layers("olmoe")
    mode = LowPrecision(layers, 0.4)
    mode.begin(2)
    assert by_id(mode.execute(event(0)), 1) == {1: 0.6}  # cold: the rule holds for all
    # Token 1's lane now holds expert 1 alone; asked for 9 first, then 1, 0: s = 0, 0.5, 0.9.
    again = Event(0, None, torch.zeros(2, 32), LOGITS, CHOSEN, torch.tensor([[0.5, 0.3, 0.1], [0.1, 0.4, 0.5]]))
    assert by_id(mode.execute(again), 1) == {9: 0.5, 1: 0.4}
    # Now both are resident: light as they are, they run in full, and 0 is heavy enough to be fetched.
    last = Event(0, None, torch.zeros(2, 32), LOGITS, CHOSEN, torch.tensor([[0.5, 0.3, 0.1], [0.8, 0.1, 0.1]]))
    assert by_id(mode.execute(last), 1) == {0: 0.8, 1: 0.1, 9: 0.1}


def test_thresholds_ascend():
    _, layers = model_and_layers("olmoe")
    with pytest.raises(InputError, match="high is at most low"):
        LowPrecision(layers, None, high=0.9, low=0.6)


def test_what_is_added_reaches_the_models_output():
    """Default vectors of zero are a drop: resident-execute and drop must agree to the last bit."""
    _, layers = model_and_layers("olmoe")
    nothing = ResidentExecute(layers, foresights("olmoe")[0], 0.3, torch.zeros_like(default_vectors("olmoe")))
    something = ResidentExecute(layers, foresights("olmoe")[0], 0.3, default_vectors("olmoe"))
    dropped = logits_of("olmoe", Drop(layers, foresights("olmoe")[0], 0.3))
    assert torch.equal(logits_of("olmoe", nothing), dropped)
    assert not torch.allclose(logits_of("olmoe", something), dropped, atol=1e-2)
