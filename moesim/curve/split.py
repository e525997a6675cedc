"""The best fixed split of slots among layers: a pool for each, sized to the fewest misses together.

Any fixed split can be arbitrarily worse than one shared pool (arXiv 2509.02408), and an LRU pool that the layers share
can be worse than a good split, since layers come round cyclically. Sizing by dynamic programming is AdapMoE's (arXiv
2408.10284); here over the exact curve of each layer, so the split is the best there is for this trace.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.curve.accesses import Numbers

UNKNOWN = -1
"""Stands for the misses at a size that the curve says nothing about."""
_TOO_MANY = np.iinfo(np.int64).max // 4


@dataclass(frozen=True, eq=False)
class BestSplit:
    """`misses[c]`: those of the best split of c slots, or UNKNOWN where some layer's largest event does not fit."""

    misses: Numbers
    _given: NDArray[np.uint16]
    """[layers, slots + 1]: what the layer gets of c slots that it shares with the layers before it."""

    def slots(self, total: int) -> list[int]:
        """The slots of each layer in the best split of `total`, whose misses are known."""
        assert self.misses[total] != UNKNOWN, "no split of so few slots holds every event"
        parts = []
        for given in self._given[::-1]:
            parts.append(int(given[total]))
            total -= parts[-1]
        return parts[::-1]


def best_split(misses_by_layer: Numbers) -> BestSplit:
    """`misses_by_layer` [layers, experts + 1]: the misses of each layer's pool by its slots, UNKNOWN where unknown."""
    layers, sizes = misses_by_layer.shape
    total = layers * (sizes - 1) + 1
    cost = np.where(misses_by_layer == UNKNOWN, _TOO_MANY, misses_by_layer)
    best = np.full(total, _TOO_MANY, np.int64)
    best[0] = 0
    given = np.zeros((layers, total), np.uint16)
    for layer in range(layers):
        before, best = best, np.full(total, _TOO_MANY, np.int64)
        for slots in np.flatnonzero(cost[layer] < _TOO_MANY).tolist():
            offered = before[: total - slots] + cost[layer, slots]
            better = offered < best[slots:]
            best[slots:][better] = offered[better]
            given[layer, slots:][better] = slots
    return BestSplit(np.where(best < _TOO_MANY, best, UNKNOWN), given)
