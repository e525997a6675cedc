"""Least-Stale (SpecMD, arXiv 2602.03921).

    a pass is one run over the layers
    current:  used in this pass, or selected by a prefetch in it (selection refreshes)
    stale:    last used in an earlier pass
    left:     of a layer before the present one
    victim:   a stale expert; a current one only when there is no other

Inside each of the two queues the paper says "FIFO ordering based on layer position" and leaves the rest open.
The variants are therefore named, and never silently chosen:

    key=insertion     oldest insertion first
    key=last-access   least recently used first; without prefetch this is LRU
    key=layer         lowest layer first, LRU inside
    key=left-first    left experts first, LRU inside
    key=cyclic        no stale flag: the layer whose turn is farthest first, LRU inside
"""

from collections.abc import Iterable

from moesim.errors import ConfigError, nearest
from moesim.policies.registry import register
from moesim.policies.roles import Evict, Key

KEYS = ("insertion", "last-access", "layer", "left-first", "cyclic")


@register("evict", "least-stale")
class LeastStale(Evict):
    """Key: (current or stale, the variant's order)."""

    def __init__(self, key: str = "insertion") -> None:
        if key not in KEYS:
            raise ConfigError(f"policy: least-stale[key={key}]: {nearest(key, KEYS)}")
        self.variant = key
        self.by_layer_distance = key == "cyclic"
        self._clock = 0
        self._layer = 0
        self._inserted: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._current: set[int] = set()

    def prepare(self, layers: int, experts: int, slots: int, future: object) -> None:
        self._experts = experts
        self._residents: list[set[int]] = [set() for _ in range(layers)]

    def _key(self, expert: int) -> Key:
        if self.variant in ("cyclic", "last-access"):
            return self._last[expert]
        current = expert in self._current
        if self.variant == "insertion":
            return current, self._inserted[expert]
        layer = expert // self._experts
        if self.variant == "layer":
            return current, layer, self._last[expert]
        return current, layer >= self._layer, self._last[expert]

    def on_pass_start(self) -> Iterable[tuple[int, Key]]:
        self._layer = 0
        was_current, self._current = self._current, set()
        if self.variant in ("cyclic", "last-access"):
            return ()
        if self.variant == "left-first":  # whoever was left is ahead again
            return [(expert, self._key(expert)) for expert in self._last]
        return [(expert, self._key(expert)) for expert in sorted(was_current)]

    def on_layer_start(self, layer: int) -> Iterable[tuple[int, Key]]:
        self._layer = layer
        if self.variant != "left-first" or layer == 0:
            return ()
        return [(expert, self._key(expert)) for expert in sorted(self._residents[layer - 1])]

    def _refresh(self, expert: int) -> Key:
        self._clock += 1
        self._last[expert] = self._clock
        self._current.add(expert)
        return self._key(expert)

    def on_insert(self, expert: int) -> Key:
        self._inserted[expert] = self._clock + 1
        self._residents[expert // self._experts].add(expert)
        return self._refresh(expert)

    def on_hit(self, expert: int) -> Key:
        return self._refresh(expert)

    def on_select(self, expert: int) -> Key:
        return self._refresh(expert)

    def on_evict(self, expert: int) -> None:
        del self._inserted[expert], self._last[expert]
        self._current.discard(expert)
        self._residents[expert // self._experts].discard(expert)
