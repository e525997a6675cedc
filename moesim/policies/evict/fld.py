"""Farthest layer distance (HOBBIT, arXiv 2411.01433; an eviction axis of SpecMD, arXiv 2602.03921).

    the distance of layer e seen from the present layer n is (e - n + L) mod L: 0 for n itself, L - 1 for n - 1
    victim: of the layer with the largest distance; inside a layer the least recently used

The experts of the layer that runs are the last to go. `cyclic-lru` differs in that alone: there they go first.
"""

from collections.abc import Iterable

from moesim.policies.evict.lru import LRU
from moesim.policies.registry import register


@register("evict", "fld")
class FLD(LRU):
    """Key: time of last use, inside the layer whose turn is farthest."""

    by_layer_distance = True

    def victim_layers(self, present: int, layers: int) -> Iterable[int]:
        return [(present - back) % layers for back in range(1, layers + 1)]
