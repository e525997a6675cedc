"""Which experts are resident while one sequence after another is decoded: one shared pool, LRU, as moesim replays it.

The same order inside an event as `moesim.decide` (docs/design.md): classify; touch, heaviest gate weight last; demand
victims; prefetch victims; unpin. What a prefetch names is pinned until its layer has run, and a prefetch without a
victim is dropped. It is told about one event at a time, by ids that only a running model knows.
"""

from collections import OrderedDict
from collections.abc import Sequence


class ResidentPool:
    """`slots` experts out of `layers * experts`, least recently used out first.

    It starts empty; with a slot for every expert, all are resident from the start.
    """

    def __init__(self, slots: int, layers: int, experts: int) -> None:
        self._slots, self._experts = slots, experts
        everyone = range(layers * experts) if slots >= layers * experts else ()
        self._order: OrderedDict[int, None] = OrderedDict.fromkeys(everyone)
        self._pinned: set[int] = set()

    def residents(self, layer: int) -> list[int]:
        """The experts of a layer that are resident, by number within it."""
        base = layer * self._experts
        return [expert for expert in range(self._experts) if base + expert in self._order]

    def event(self, layer: int, chosen: Sequence[int], *, fetch: bool) -> list[int]:
        """The accesses of one event, heaviest first; returns those that can be executed, in the same order.

        With `fetch` the missing are brought in, and all can be executed; otherwise those that were resident.
        """
        base = layer * self._experts
        accesses = [base + expert for expert in chosen]
        present = [expert for expert in accesses if expert in self._order]
        self._pinned.update(present)
        if fetch:
            for expert in accesses:
                if expert not in self._order:
                    made = self._make_room()
                    assert made, "a layer that fetches is foreseen by nobody, and a token's experts fit"
                    self._order[expert] = None
                    self._pinned.add(expert)
            present = accesses
        for expert in reversed(present):
            self._order.move_to_end(expert)
        return [expert - base for expert in present]

    def prefetch(self, layer: int, wanted: Sequence[int]) -> None:
        """Bring in what is foreseen for a coming layer, the likeliest first; residents keep their age."""
        base = layer * self._experts
        named = [base + expert for expert in wanted]
        self._pinned.update(named)
        for expert in [each for each in named if each not in self._order]:
            if self._make_room():
                self._order[expert] = None

    def finish(self, layer: int) -> None:
        """The layer has run: what was pinned for it may go."""
        base = layer * self._experts
        self._pinned = {expert for expert in self._pinned if not base <= expert < base + self._experts}

    def _make_room(self) -> bool:
        """Evict the least recently used that is not pinned, if there is no free slot; False if there is none."""
        if len(self._order) < self._slots:
            return True
        victim = next((expert for expert in self._order if expert not in self._pinned), None)
        if victim is None:
            return False
        del self._order[victim]
        return True


def slots_of(cache_fraction: float, layers: int, experts: int) -> int:
    """floor(f · L · E), where a fraction written as a decimal loses no slot to binary rounding (docs/design.md)."""
    return int(cache_fraction * layers * experts + 1e-9)
