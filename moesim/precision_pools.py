"""Two pools behind one: experts in the model's own precision, and the same experts in a lower one.

Each pool has slots of its own size and an eviction rule of its own, made anew; a rule knows experts and no versions, so
the low pool's is told plain numbers. Whoever decides sees one pool and one rule, which hand every question on by the
version that it is about (`moesim/versions.py` numbers them).
"""

from collections.abc import Iterable, Sequence

from moesim.cache import ExpertCache
from moesim.events import Step, UseList
from moesim.policies.roles import Evict, Key


class PrecisionEvict(Evict):
    """Two eviction rules; each is told of the uses of its own precision only."""

    def __init__(self, high: Evict, low: Evict, first_low: int) -> None:
        """`first_low`: the number from which on experts are in low precision."""
        self._rules = ((0, high), (first_low, low))
        self.stays = high.stays
        self._first_low = first_low

    def prepare(self, layers: int, experts: int, slots: int, future: UseList | None) -> None:
        raise AssertionError("each of the two is prepared for its own slots")

    def placed(self, layers: Sequence[int]) -> Iterable[int]:
        return self._rules[0][1].placed(layers)

    def _of(self, expert: int) -> tuple[int, Evict]:
        return self._rules[expert >= self._first_low]

    def on_step(self, step: Step) -> None:
        for _, rule in self._rules:
            rule.on_step(step)

    def on_event(self, step: Step, layer: int) -> None:
        for _, rule in self._rules:
            rule.on_event(step, layer)

    def on_pass_start(self) -> Iterable[tuple[int, Key]]:
        return [(first + expert, key) for first, rule in self._rules for expert, key in rule.on_pass_start()]

    def on_layer_start(self, layer: int) -> Iterable[tuple[int, Key]]:
        return [(first + expert, key) for first, rule in self._rules for expert, key in rule.on_layer_start(layer)]

    def on_touched(self) -> Iterable[tuple[int, Key]]:
        return [(first + expert, key) for first, rule in self._rules for expert, key in rule.on_touched()]

    def on_insert(self, expert: int) -> Key:
        first, rule = self._of(expert)
        return rule.on_insert(expert - first)

    def on_prefetch(self, expert: int) -> Key:
        first, rule = self._of(expert)
        return rule.on_prefetch(expert - first)

    def on_hit(self, expert: int) -> Key:
        first, rule = self._of(expert)
        return rule.on_hit(expert - first)

    def on_select(self, expert: int) -> Key | None:
        first, rule = self._of(expert)
        return rule.on_select(expert - first)


class PlainNumbers(Evict):
    """The low pool's rule as its cache asks it: victims are named as versions there, plainly here."""

    def __init__(self, rule: Evict, first_low: int) -> None:
        self._rule = rule
        self._first_low = first_low
        self.by_layer_distance, self.weighs_layers = rule.by_layer_distance, rule.weighs_layers
        self.draws = rule.draws

    def victim_layers(self, present: int, layers: int) -> Iterable[int]:
        return self._rule.victim_layers(present, layers)

    def lightest(self, firsts: Sequence[Key | None], present: int) -> int:
        return self._rule.lightest(firsts, present)

    def draw(self, residents: Sequence[int], pinned: set[int]) -> int | None:
        return self._rule.draw(residents, pinned)

    def on_insert(self, expert: int) -> Key:
        return self._rule.on_insert(expert - self._first_low)

    def on_hit(self, expert: int) -> Key:
        return self._rule.on_hit(expert - self._first_low)

    def on_evict(self, expert: int) -> None:
        self._rule.on_evict(expert - self._first_low)


class PrecisionPools(ExpertCache):
    """The two pools as one. `slot_of` and `pinned` are common to both."""

    def __init__(self, high: ExpertCache, low: ExpertCache, first_low: int) -> None:
        self._pools = (high, low)
        self._first_low = first_low
        self.slots = high.slots
        self.slot_of = high.slot_of = low.slot_of = {}
        self.pinned = high.pinned = low.pinned = set()

    def _of(self, expert: int) -> ExpertCache:
        return self._pools[expert >= self._first_low]

    def rekey(self, changed: Iterable[tuple[int, Key]]) -> None:
        for expert, key in changed:
            self._of(expert).rekey([(expert, key)])

    def set_key(self, expert: int, key: Key) -> None:
        self._of(expert).set_key(expert, key)

    def take_slot(self, layer: int, expert: int) -> tuple[int, int | None] | None:
        return self._of(expert).take_slot(layer, expert)

    def insert(self, expert: int, slot: int, key: Key) -> None:
        self._of(expert).insert(expert, slot, key)

    def drop(self, expert: int) -> None:
        self._of(expert).drop(expert)

    def trim(self, layer: int) -> list[int]:
        return [dropped for pool in self._pools for dropped in pool.trim(layer)]
