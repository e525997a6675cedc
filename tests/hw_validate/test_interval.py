"""The bootstrap interval against closed forms: independent normal steps, and steps that resemble their neighbours."""

import numpy as np
import pytest

from hw_validate.interval import Interval, block_steps, mean_interval


def autoregressive(count, correlation, seed):
    """x[t] = correlation · x[t−1] + standard normal noise, started in its stationary distribution."""
    noise = np.random.default_rng(seed).normal(size=count)
    series = np.empty(count)
    series[0] = noise[0] / (1 - correlation**2) ** 0.5
    for place in range(1, count):
        series[place] = correlation * series[place - 1] + noise[place]
    return 100 + series


def mean_width(count, correlation, series=60):
    intervals = [mean_interval(autoregressive(count, correlation, seed)) for seed in range(series)]
    return np.mean([each.high - each.low for each in intervals])


@pytest.mark.parametrize("count", [16, 128])
def test_independent_steps_have_the_interval_of_the_normal_distribution(count):
    # the standard error of the mean of n independent values with variance 1 is 1 / √n
    assert mean_width(count, 0.0) == pytest.approx(2 * 1.96 / count**0.5, rel=0.08)


def test_correlated_steps_have_the_wider_interval_of_their_long_run_variance():
    # the variance of the mean tends to (noise variance) / (1 − r)² / n; for r = 0.6 the standard error is twice that
    # of independent values with the same spread
    assert mean_width(1024, 0.6, series=20) == pytest.approx(2 * 1.96 / (1 - 0.6) / 1024**0.5, rel=0.12)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(correlation):
    held = 0
    for seed in range(200):
        interval = mean_interval(autoregressive(128, correlation, seed))
        held += interval.low <= 100 <= interval.high
    # 95 % within the sampling error of 200 series (1.5 points), less what short correlated series lose
    assert 0.88 <= held / 200 <= 0.99


def test_the_block_is_the_optimal_length_for_its_correlation():
    # r = 0.5, n = 4096: (3/2)^(1/3) · (4/3)^(2/3) · 16 = 22.2, and the estimate of r varies by 1 / √n
    assert 20 <= block_steps(autoregressive(4096, 0.5, seed=1)) <= 25
    assert block_steps(np.array([1.0, -1.0] * 50)) == 1
    assert block_steps(np.full(50, 3.0)) == 1
    assert block_steps(np.arange(40.0)) == 10  # a trend: at most a quarter of the steps


def test_edges():
    assert mean_interval([5]) is None
    assert mean_interval([5, 5, 5]) == Interval(5.0, 5.0, 1)
    values = autoregressive(64, 0.3, seed=3)
    assert mean_interval(values) == mean_interval(list(values))


def test_disjoint_is_about_common_values():
    assert Interval(1, 2, 1).disjoint(Interval(2.1, 3, 1))
    assert Interval(2.1, 3, 1).disjoint(Interval(1, 2, 1))
    assert not Interval(1, 2, 1).disjoint(Interval(2, 3, 1))
    assert not Interval(1, 4, 1).disjoint(Interval(2, 3, 1))
