"""Segmented LRU (R. Karedla et al., "Caching strategies to improve disk system performance", Computer 27(3), 1994).

    on insertion: the expert joins the probationary segment
    on use:       it joins the protected segment; if that now holds more than its share of the slots, its least
                  recently used expert goes back to the probationary segment, as the most recent there
    victim:       the least recently used of the probationary segment; of the protected one if there is no other

So an expert must be used twice before it can push out one that was. The share is open where SLRU is named for
experts (layered paging, arXiv 2509.02408, has a layer-aware LRU whose key is not public: this is not it).
"""

from collections.abc import Iterable

from moesim.errors import ConfigError
from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "slru")
class SLRU(Evict):
    """Key: (protected, time of joining or of last use in the segment)."""

    def __init__(self, protected: float = 0.8) -> None:
        if not 0 <= protected <= 1:
            raise ConfigError(f"policy: slru[protected={protected}]: expected a share from 0 to 1")
        self._share = protected
        self._clock = 0
        self._protected: dict[int, None] = {}
        """In order of last use."""
        self._demoted: dict[int, tuple[bool, int]] = {}

    def prepare(self, layers: int, experts: int, slots: int, future: object) -> None:
        self._most = int(self._share * slots)

    def on_insert(self, expert: int) -> tuple[bool, int]:
        self._clock += 1
        return False, self._clock

    def on_hit(self, expert: int) -> tuple[bool, int]:
        self._clock += 1
        self._protected.pop(expert, None)
        self._demoted.pop(expert, None)
        self._protected[expert] = None
        stamp = self._clock
        if len(self._protected) > self._most:
            oldest = next(iter(self._protected))
            del self._protected[oldest]
            self._clock += 1
            if oldest == expert:  # no room is protected at all
                return False, self._clock
            self._demoted[oldest] = False, self._clock
        return True, stamp

    def on_touched(self) -> Iterable[tuple[int, tuple[bool, int]]]:
        changed = list(self._demoted.items())
        self._demoted.clear()
        return changed

    def on_evict(self, expert: int) -> None:
        self._protected.pop(expert, None)
