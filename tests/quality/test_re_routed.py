"""Routing by residency, against moesim's own rules for the same policies, on random scores and residents."""

import numpy as np
import pytest
import torch

from moesim.errors import InputError
from moesim.policies.registry import rule_class
from moesim.quality.modes.cache_prior import CachePrior
from moesim.quality.modes.max_rank import CumulativeThreshold, MaxRank
from moesim.quality.modes.mode import Event
from tests.quality.settings import model_and_layers
from tests.record.tiny_models import EXPERTS, TOP_K

_, LAYERS = model_and_layers("olmoe")
CASES = [
    (CachePrior, "cache-prior", {}),
    (CachePrior, "cache-prior", {"strength": 1.5, "keep": 0}),
    (MaxRank, "max-rank", {}),
    (MaxRank, "max-rank", {"rank": 4, "keep": 2}),
    (MaxRank, "max-rank", {"rank": EXPERTS, "keep": 0}),
    (CumulativeThreshold, "cumulative-threshold", {}),
    (CumulativeThreshold, "cumulative-threshold", {"mass": 0.9, "keep": 0}),
]


@pytest.mark.parametrize(("kind", "policy", "arguments"), CASES)
def test_the_selection_is_that_of_the_policy(kind, policy, arguments):
    rule = rule_class("route", policy)(**arguments)
    rule.prepare(1, EXPERTS)
    mode = kind(LAYERS, 0.5, **arguments)
    mode.begin(1)
    draw = torch.Generator().manual_seed(7)
    moved = 0
    for _ in range(200):
        logits = 1.2 * torch.randn(1, EXPERTS, generator=draw)
        resident = torch.rand(1, EXPERTS, generator=draw) < 0.5
        scores = logits.softmax(-1)
        top = scores.topk(TOP_K)
        selected = mode.selected(Event(0, None, torch.zeros(1, 32), logits, top.indices, top.values), resident)
        order = scores[0].argsort(descending=True).tolist()
        expected = rule.choose(0, order, scores[0].numpy().astype(np.float64), resident[0].tolist(), TOP_K)
        assert sorted(selected[0].tolist()) == sorted(expected)
        moved += sorted(expected) != sorted(order[:TOP_K])
    assert 20 < moved < 200


def test_what_is_out_of_range_is_refused():
    for kind, arguments in [
        (CachePrior, {"strength": -1}), (CachePrior, {"keep": 4}), (MaxRank, {"rank": 0}),
        (CumulativeThreshold, {"mass": 2}),
    ]:
        with pytest.raises(InputError, match=f"{kind.name}: {next(iter(arguments))}="):
            kind(LAYERS, 0.5, **arguments)


def test_variants_are_what_one_would_write_behind_the_policy():
    assert CachePrior(LAYERS, 0.5).variant == {}
    assert CachePrior(LAYERS, 0.5, 0.2, 2).variant == {"strength": 0.2, "keep": 2}
    assert MaxRank(LAYERS, 0.5).variant == {}
    assert MaxRank(LAYERS, 0.5, 4).variant == {"rank": 4}
    assert CumulativeThreshold(LAYERS, 0.5, 0.7).variant == {"mass": 0.7}
