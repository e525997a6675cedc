"""ExpertCache: which expert is in which slot, without a clock.

Residency changes in issue order: an expert whose copy is in flight counts as present, and whoever executes it
waits for the copy. So the sequence of hits and victims does not depend on the device.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from moesim.policies.roles import Evict, Key


class LazyHeap:
    """Keys in order, where a changed key leaves its old entry behind until that comes to the top."""

    __slots__ = ("_aside", "_experts_aside", "_heap", "key_of")

    def __init__(self) -> None:
        self.key_of: dict[int, Key] = {}
        self._heap: list[tuple[Key, int]] = []
        self._aside: list[tuple[Key, int]] = []
        """Entries that came to the top while their expert was pinned."""
        self._experts_aside: set[int] = set()

    def put(self, expert: int, key: Key) -> None:
        """Give an expert a key, new or changed."""
        if self.key_of.get(expert) == key:
            return
        self.key_of[expert] = key
        heappush(self._heap, (key, expert))
        if len(self._heap) > 64 + 4 * len(self.key_of):  # keep the garbage bounded
            self._heap = [(k, e) for e, k in self.key_of.items()]
            heapify(self._heap)
            self._aside, self._experts_aside = [], set()

    def smallest(self, pinned: set[int]) -> int | None:
        """The expert with the smallest key that is not pinned, or None. It stays in the heap."""
        heap, key_of, aside = self._heap, self.key_of, self._aside
        if not self._experts_aside <= pinned:
            still = [entry for entry in aside if entry[1] in pinned]
            for entry in aside:
                if entry[1] not in pinned:
                    heappush(heap, entry)
            self._aside = aside = still
            self._experts_aside &= pinned
        while heap:
            key, expert = heap[0]
            if expert not in key_of or key_of[expert] != key:
                heappop(heap)
            elif expert in pinned:
                aside.append(heappop(heap))
                self._experts_aside.add(expert)
            else:
                return expert
        return None

    def remove(self, expert: int) -> None:
        """Forget an expert."""
        del self.key_of[expert]


class ExpertCache:
    """Slots, residents, pins and the order of eviction.

    Experts are numbered `layer * experts + expert`, from `first_expert` on. `slots` is the capacity; a rule with
    `bypass` may exceed it during an event, in `staging` further slots, and is trimmed after it. A workspace, which is
    emptied after every event, keeps no order (`ordered=False`): where guesses for layers to come have filled it and
    were unpinned for a demand, the first to come goes first.
    """

    def __init__(
        self,
        slots: int,
        evict: Evict,
        layers: int,
        experts: int,
        *,
        first_slot: int = 0,
        staging: int = 0,
        ordered: bool = True,
        first_expert: int = 0,
    ) -> None:
        self.slots = slots
        self.slot_of: dict[int, int] = {}
        self.pinned: set[int] = set()
        self._staging = staging
        self._first_expert = first_expert
        self._own_layers = frozenset(range(layers))
        self._evict = evict
        self._layers = layers
        self._experts = experts
        self._free = deque(range(first_slot, first_slot + slots + staging))
        self._in_order_of_coming = not ordered
        self._ordered = ordered and not evict.draws
        self._by_layer = evict.by_layer_distance or evict.weighs_layers
        self._first_slot = first_slot
        self._holder = [-1] * (slots + staging)
        """Who holds each slot. A victim is sought when none is free, so everyone in it is resident then."""
        self._firsts: list[int | None] = [None] * layers
        self._first_keys: list[Key | None] = [None] * layers
        self._unsure: set[int] = set()
        """Layers whose first candidate may be another by now."""
        self._orders = [LazyHeap() for _ in range(layers if self._by_layer else 1)]

    def _order(self, expert: int) -> LazyHeap:
        if not self._by_layer:
            return self._orders[0]
        layer = (expert - self._first_expert) // self._experts
        self._unsure.add(layer)
        return self._orders[layer]

    def rekey(self, changed: Iterable[tuple[int, Key]]) -> None:
        """Keys that a hook changed; experts that are not resident here are passed over."""
        for expert, key in changed:
            if self._ordered and expert in self.slot_of:
                self._order(expert).put(expert, key)

    def set_key(self, expert: int, key: Key) -> None:
        """A resident expert's new key."""
        if self._ordered:
            self._order(expert).put(expert, key)

    def victim(self, layer: int) -> int | None:
        """Who leaves next while `layer` runs; None if everything is pinned."""
        if self._in_order_of_coming:
            return next((expert for expert in self.slot_of if expert not in self.pinned), None)
        if self._evict.draws:
            return self._evict.draw(self._holder, self.pinned)
        if not self._by_layer:
            return self._orders[0].smallest(self.pinned)
        if self._evict.weighs_layers:
            return self._lightest(layer)
        for each in self._evict.victim_layers(layer, self._layers):
            found = self._orders[each].smallest(self.pinned)
            if found is not None:
                return found
        return None

    def _lightest(self, present: int) -> int | None:
        """Ask the rule which layer's first candidate goes. First candidates are kept until their layer changes."""
        for layer in self._unsure:
            self._look_up_first(layer)
        # Where something is pinned now, something else may come first once it is not.
        experts, before = self._experts, self._first_expert // self._experts
        self._unsure = {expert // experts - before for expert in self.pinned} & self._own_layers
        for layer, first in enumerate(self._firsts):
            if first in self.pinned:
                self._look_up_first(layer)
        layer = self._evict.lightest(self._first_keys, present)
        return None if layer < 0 else self._firsts[layer]

    def _look_up_first(self, layer: int) -> None:
        order = self._orders[layer]
        first = order.smallest(self.pinned)
        self._firsts[layer] = first
        self._first_keys[layer] = None if first is None else order.key_of[first]

    def take_slot(self, layer: int, expert: int) -> tuple[int, int | None] | None:
        """A slot for `expert` and whom it displaced: (slot, victim or None); None if no victim is left.

        Slots of one size serve anyone; where an expert has several versions, it says which slots will do.
        """
        if self._free:
            return self._free.popleft(), None
        victim = self.victim(layer)
        if victim is None:
            return None
        slot = self.slot_of.pop(victim)
        if self._ordered:
            self._order(victim).remove(victim)
        self._evict.on_evict(victim)
        return slot, victim

    def insert(self, expert: int, slot: int, key: Key) -> None:
        """Put an expert into a slot that `take_slot` gave."""
        self.slot_of[expert] = slot
        self._holder[slot - self._first_slot] = expert
        if self._ordered:
            self._order(expert).put(expert, key)

    def drop(self, expert: int) -> None:
        """Empty an expert's slot."""
        self._free.append(self.slot_of.pop(expert))
        if self._ordered:
            self._order(expert).remove(expert)
        self._evict.on_evict(expert)

    def trim(self, layer: int) -> list[int]:
        """Drop victims until the capacity holds; returns them. Only a rule with `bypass` ever exceeds it."""
        dropped = []
        while len(self._free) < self._staging:
            victim = self.victim(layer)
            if victim is None:  # all are foreseen for a layer to come: they stay where they are until it has run
                break
            self.drop(victim)
            dropped.append(victim)
        return dropped
