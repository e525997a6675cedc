"""Intervals against closed forms, and the sums behind them against a recomputation."""

import numpy as np
import pytest
import torch

from moesim.quality.intervals import draws, interval
from moesim.quality.measure import AGREEMENT, DIVERGENCE, NLL, TRUE_NLL, Layout, measure
from moesim.quality.modes.low_precision import LowPrecision
from tests.quality.settings import LENGTH, PROMPT, logits_of, model_and_layers, tokens


def ratio(totals):
    return totals[..., 0] / totals[..., 1]


def test_blocks_are_drawn_with_replacement_as_many_as_there_are():
    drawn = draws(9)
    assert (drawn.sum(1) == 9).all()
    assert 0 < (drawn == 0).mean() < 1
    assert drawn.mean() == pytest.approx(1)
    assert np.array_equal(drawn, draws(9))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(3).normal(5, 2, 400)
    found = interval(np.stack([values, np.ones(400)], 1), ratio, draws(400))
    spread = 1.96 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - spread, values.mean() + spread), rel=0.01)


def test_blocks_count_by_their_tokens():
    found = interval(np.array([[10.0, 1.0], [0.0, 9.0]]), ratio, draws(2))
    assert found.value == 1
    assert (found.low, found.high) == (0, 10)


def test_sums_are_those_of_the_distributions():
    """torch's own divergence and likelihoods, token by token."""
    model, layers = model_and_layers("qwen3")
    given = tokens()
    mode = LowPrecision(layers, None, high=-1, low=1)
    (found,) = measure(model, layers, [mode], given.numpy(), Layout(PROMPT, 3, 1))
    true, other = (logits_of("qwen3", each).double().log_softmax(-1) for each in (None, mode))
    for block in range(len(given)):
        skipped = 3 if block == 0 else 0  # one lane: its warm-up is in its first block
        here = slice(skipped, LENGTH - 1 - PROMPT)
        p, q, target = true[block, here], other[block, here], given[block, PROMPT + 1 + skipped :]
        divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item()
        assert found[block, DIVERGENCE] == pytest.approx(divergence, rel=1e-4)
        rows = torch.arange(len(target))
        assert found[block, NLL] == pytest.approx(-q[rows, target].sum().item(), rel=1e-5)
        assert found[block, TRUE_NLL] == pytest.approx(-p[rows, target].sum().item(), rel=1e-5)
        assert found[block, AGREEMENT] == (p.argmax(-1) == q.argmax(-1)).sum().item()
