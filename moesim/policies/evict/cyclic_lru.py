"""Least recently used of the layer whose next turn is farthest (after layered paging, arXiv 2509.02408).

    the next turn of layer e seen from the present layer n is ((e - n - 1) mod L) + 1 layers away:
    1 for the next layer, L for the present one, whose turn has just been
    victim: of the layer with the farthest turn; inside a layer the least recently used

The paper's own layer-aware rule has a key that is not public; this is not called by its name. The same order as
`least-stale[key=cyclic]`, except that a prefetch which names a resident refreshes nothing here.
"""

from moesim.policies.evict.lru import LRU
from moesim.policies.registry import register


@register("evict", "cyclic-lru")
class CyclicLRU(LRU):
    """Key: time of last use, inside the layer whose turn is farthest."""

    by_layer_distance = True
