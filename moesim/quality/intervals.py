"""Confidence intervals of a mode's cost: percentile bootstrap over blocks of text.

Blocks are drawn with replacement, as many as there are, and the statistic (a ratio of sums over the drawn blocks) is
computed anew; the interval holds the middle 95 % of the results. The same draws serve every mode, and an increase
compares a mode with the true model on the same blocks (paired), so that easy and hard blocks cancel. Blocks of one
lane share a cache and neighbouring text, so they are not quite independent: intervals are, if anything, too narrow.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.quality.stored import Interval

RESAMPLES: Final = 2_000
CONFIDENCE: Final = 0.95
SEED: Final = 0
METHOD: Final = "percentile bootstrap over blocks, paired with the true model"

Floats = NDArray[np.float64]


def draws(blocks: int) -> Floats:
    """[RESAMPLES, blocks]: how often each block is drawn in each resample."""
    chosen = np.random.default_rng(SEED).integers(blocks, size=(RESAMPLES, blocks))
    return np.stack([np.bincount(each, minlength=blocks) for each in chosen]).astype(np.float64)


def interval(sums: Floats, statistic: Callable[[Floats], Floats], drawn: Floats) -> Interval:
    """The statistic of all blocks, and its interval.

    `sums` is [blocks, n], what each block contributes to each of n sums; `statistic` maps sums [..., n] to [...].
    """
    low, high = np.quantile(statistic(drawn @ sums), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # Summed in the blocks' order, whatever the resamples do: equal sums give equal values.
    return Interval(value=float(statistic(sums.sum(0))), low=float(low), high=float(high))
