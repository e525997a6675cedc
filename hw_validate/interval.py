"""How sure a measured mean is: a bootstrap interval that respects that neighbouring steps resemble each other.

Consecutive tokens choose similar experts, so the times of neighbouring steps are correlated and an interval for
independent steps would be too narrow. Whole blocks of consecutive steps are drawn instead, on a circle, so that every
step is drawn equally often (circular block bootstrap: Politis and Romano, 1992). The length of a block is the best one
for a first-order autoregressive series (Politis and White, Econometric Reviews 2004, with its spectrum put in):

    length = (3/2)^(1/3) · (2 r / (1 − r²))^(2/3) · n^(1/3)

with n steps and r their correlation at distance one, at least 1 and at most a quarter of the steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
SEED = 20_240_229
"""Any number; fixed, so that the same steps give the same interval."""


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the resampled means."""

    low: float
    high: float
    block_steps: int

    def disjoint(self, other: "Interval") -> bool:
        """Whether the two intervals have no value in common."""
        return self.high < other.low or other.high < self.low


def block_steps(values: NDArray[np.float64]) -> int:
    """The length of a block for a series [n]; 1 where neighbours are not positively correlated."""
    centred = values - values.mean()
    scatter = float(centred @ centred)
    # A series of equal values has no correlation to speak of.
    correlation = float(centred[1:] @ centred[:-1]) / scatter if scatter > 0 else 0.0
    if correlation <= 0:
        return 1
    length = 1.5 ** (1 / 3) * (2 * correlation / (1 - correlation**2)) ** (2 / 3) * len(values) ** (1 / 3)
    return max(1, min(int(length + 0.5), len(values) // 4))


def mean_interval(steps: Sequence[float]) -> Interval | None:
    """The 95 % interval of the mean of a series of steps; None for fewer than two: they have no spread."""
    if len(steps) < 2:
        return None
    values = np.asarray(steps, dtype=np.float64)
    count, length = len(values), block_steps(values)
    starts = np.random.default_rng(SEED).integers(0, count, size=(RESAMPLES, -(-count // length)))
    places = (starts[:, :, None] + np.arange(length)) % count
    means = values[places.reshape(RESAMPLES, -1)[:, :count]].mean(axis=1)
    # Deviations from the sample's own mean are too small by one block's share: in expectation exactly 1 − 1/n for
    # independent steps, to first order 1 − length/n for others.
    widened = values.mean() + (means - values.mean()) * (count / (count - length)) ** 0.5
    low, high = np.quantile(widened, [0.025, 0.975])
    return Interval(float(low), float(high), length)
