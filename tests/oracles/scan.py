"""Event-atomic caching where every eviction looks at every slot and works its formula out again from the whole past.

For the policies that `event_atomic` does not know. It shares no line with the package and keeps no keys: `Past` holds
what happened to an expert, and a *formula* turns that, the present token and the present layer into a number, as the
paper writes it, in exact arithmetic. The readings of `event_atomic` hold here too. Steps of one token only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random

Key = tuple[int, int]  # (layer, expert)


@dataclass(frozen=True)
class Event:
    """One layer of one step; `experts` heaviest first, `weights` beside them. `scores` of all experts, if known."""

    step: int
    layer: int
    request: int
    experts: tuple[int, ...]
    weights: tuple[float, ...]
    scores: tuple[float, ...] = ()


@dataclass
class Past:
    """What has happened to one expert, from the beginning."""

    inserted: int = 0
    """When it took its present slot."""
    touched: int = 0
    """When it was last used, or inserted if it has not been used since."""
    uses: list[tuple[int, int, float, bool]] = field(default_factory=list)
    """(time, step, gate weight, high precision) of every use."""
    step: int = 0
    """When it was last used, inserted, or named by a prefetch while it was resident."""
    prefetched: bool = False
    """Its slot was given for a prefetch and it has not been used since."""


@dataclass(frozen=True)
class Now:
    step: int
    layer: int
    layers: int
    sequence_start: int
    """The first step of the present request."""


Formula = Callable[[Key, Past, Now], object]


def lru(key, past, now):
    return past.touched


def lhu(key, past, now):
    return sum(high for time, _, _, high in past.uses if time >= past.inserted), past.touched


def lfu(key, past, now):
    return sum(use[0] >= past.inserted for use in past.uses), past.touched


def least_stale(key, past, now):
    """Its `insertion` variant."""
    return past.step == now.step, past.inserted


def fld(key, past, now):
    return -((key[0] - now.layer + now.layers) % now.layers), past.touched


def cyclic_lru(key, past, now):
    return -(((key[0] - now.layer - 1) % now.layers) + 1), past.touched


def score(key, past, now):
    return (0.0 if past.prefetched else past.uses[-1][2]), past.touched


def lcp(key, past, now, counts_from_insertion=False):
    """μ·(1/4)^(ν/128), to the power of 128: a rational number."""
    uses = [use for use in past.uses if not counts_from_insertion or use[0] >= past.inserted]
    if not uses:
        return Fraction(0), past.touched
    return Fraction(len(uses) ** 128, 4 ** (now.step - past.uses[-1][1])), past.touched


def lcp_from_insertion(key, past, now):
    return lcp(key, past, now, counts_from_insertion=True)


def hobbit(key, past, now, weights=(Fraction(1, 4),) * 4):
    token = now.step - now.sequence_start + 1
    uses = [use for use in past.uses if use[1] >= now.sequence_start]
    last = uses[-1][1] - now.sequence_start + 1 if uses else 0
    ahead = (key[0] - now.layer + now.layers) % now.layers
    terms = (
        Fraction(last, token), Fraction(len(uses), token), Fraction(sum(high for *_, high in uses), token),
        1 - Fraction(ahead, now.layers),
    )
    return sum(weight * term for weight, term in zip(weights, terms, strict=True)), past.touched


def hobbit_in_whole_numbers(key, past, now):
    """The same with equal weights, times four times token and layers, which all residents have in common: quicker."""
    uses = [use for use in past.uses if use[1] >= now.sequence_start]
    last = uses[-1][1] - now.sequence_start + 1 if uses else 0
    ahead = (key[0] - now.layer + now.layers) % now.layers
    counted = last + len(uses) + sum(use[3] for use in uses)
    return now.layers * counted + (now.step - now.sequence_start + 1) * (now.layers - ahead), past.touched


FORMULAS: dict[str, Formula] = {
    "lru": lru, "lfu": lfu, "least-stale": least_stale, "lhu": lhu, "fld": fld, "cyclic-lru": cyclic_lru,
    "score": score, "lcp": lcp, "lcp[counts=insertion]": lcp_from_insertion, "hobbit": hobbit,
    "hobbit in whole numbers": hobbit_in_whole_numbers,
}


class Scan:
    """Victims by a formula."""

    def __init__(self, formula: Formula) -> None:
        self._formula = formula

    def used(self, key: Key, was_resident: bool) -> None: ...
    def gone(self, key: Key) -> None: ...

    def victim(self, slots: list[Key | None], free: list[Key], pasts: dict[Key, Past], now: Now) -> Key:
        return min(free, key=lambda key: self._formula(key, pasts[key], now))


class Segments:
    """SLRU with two lists, least recently used first, as the textbook draws it."""

    def __init__(self, slots: int, share: float = 0.8) -> None:
        self._most = int(slots * share)
        self._probation: list[Key] = []
        self._protected: list[Key] = []

    def used(self, key: Key, was_resident: bool) -> None:
        """Taking a slot is the first use; also for a prefetch."""
        if not was_resident:
            self._probation.append(key)
            return
        (self._probation if key in self._probation else self._protected).remove(key)
        self._protected.append(key)
        while len(self._protected) > self._most:
            self._probation.append(self._protected.pop(0))

    def gone(self, key: Key) -> None:
        (self._probation if key in self._probation else self._protected).remove(key)

    def victim(self, slots, free, pasts, now):
        return next(key for key in self._probation + self._protected if key in free)


class Dice:
    """A seeded throw over the slots, again while it falls on a pinned one; after eight over the free ones."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)

    def used(self, key: Key, was_resident: bool) -> None: ...
    def gone(self, key: Key) -> None: ...

    def victim(self, slots, free, pasts, now):
        for _ in range(8):
            thrown = slots[int(self._random.random() * len(slots))]
            if thrown in free:
                return thrown
        ordered = [key for key in slots if key in free]
        return ordered[int(self._random.random() * len(ordered))]


def eviction(name: str, slots: int):
    if name == "slru":
        return Segments(slots)
    if name == "random":
        return Dice()
    return Scan(FORMULAS[name])


@dataclass
class Outcome:
    """Of one event, by expert."""

    accessed: list[int]
    hits: set[int] = field(default_factory=set)
    stood_in: set[int] = field(default_factory=set)
    fetched: set[int] = field(default_factory=set)
    prefetched: list[Key] = field(default_factory=list)
    dropped: int = 0
    victims: list[Key] = field(default_factory=list)


Choose = Callable[[Event, set[Key]], Sequence[int]]
"""The experts to access, heaviest first, given the residents."""
Ask = Callable[[Event, set[Key]], Sequence[Key]]
"""What to prefetch at an event, most wanted first, given the residents."""
Fetched = Callable[[Event, Sequence[int]], Sequence[int]]
"""Which of the missing experts are fetched."""


def high_precision(event: Event) -> set[int]:
    total = sum(map(Fraction, event.weights))
    return {
        expert for place, expert in enumerate(event.experts)
        if sum(map(Fraction, event.weights[:place])) <= Fraction(3, 5) * total
    }


def simulate(
    events: Sequence[Event],
    slots: int,
    evict: str = "lru",
    *,
    layers: int,
    choose: Choose = lambda event, residents: event.experts,
    ask: Ask = lambda event, residents: (),
    fetched: Fetched = lambda event, missing: missing,
) -> list[Outcome]:
    """One outcome per event. The slots must hold the largest event."""
    holders: list[Key | None] = [None] * slots
    pasts: dict[Key, Past] = {}
    pinned: set[Key] = set()
    rule = eviction(evict, slots)
    time = 0
    sequence_start, request = 0, None
    outcomes = []

    def tick() -> int:
        nonlocal time
        time += 1
        return time

    def take(key: Key, busy: set[Key], now: Now, outcome: Outcome) -> bool:
        if None in holders:
            place = holders.index(None)
        else:
            free = [holder for holder in holders if holder not in busy]
            if not free:
                return False
            victim = rule.victim(holders, free, pasts, now)
            outcome.victims.append(victim)
            rule.gone(victim)
            place = holders.index(victim)
        holders[place] = key
        return True

    for event in events:
        if event.request != request:
            sequence_start, request = event.step, event.request
        now = Now(event.step, event.layer, layers, sequence_start)
        residents = {holder for holder in holders if holder is not None}
        outcome = Outcome(list(choose(event, residents)))
        keys = [(event.layer, expert) for expert in outcome.accessed]
        outcome.hits = {expert for layer, expert in keys if (layer, expert) in residents}
        missing = [expert for expert in outcome.accessed if expert not in outcome.hits]
        outcome.fetched = set(fetched(event, missing)) if missing else set()
        outcome.stood_in = set(missing) - outcome.fetched
        weight = dict(zip(event.experts, event.weights, strict=True))
        high = high_precision(event)
        used = [key for key in keys if key[1] not in outcome.stood_in]
        for key in reversed(used):
            now_used = tick()
            past = pasts.setdefault(key, Past())
            if key not in residents:
                past.inserted = now_used
            past.touched, past.step, past.prefetched = now_used, event.step, False
            past.uses.append((now_used, event.step, weight.get(key[1], 0.0), key[1] in high))
            rule.used(key, key in residents)
        busy = pinned | set(used)
        for key in used:
            if key not in residents and not take(key, busy, now, outcome):
                # Demand goes before foresight: first what was foreseen in vain for this layer, then for later ones.
                vain = {other for other in pinned if other[0] == event.layer and other not in used}
                pinned -= vain if vain else {other for other in pinned if other not in used}
                busy = pinned | set(used)
                assert take(key, busy, now, outcome)
        wanted = list(ask(event, {holder for holder in holders if holder is not None}))
        for key in wanted:
            if key in holders:
                pinned.add(key)
                pasts[key].step = event.step
        for key in wanted:
            if key in holders:
                continue
            if not take(key, pinned | set(used), now, outcome):
                outcome.dropped += 1
                continue
            stamp = tick()
            past = pasts.setdefault(key, Past())
            past.inserted = past.touched = stamp
            past.step = event.step
            past.prefetched = True
            rule.used(key, False)
            pinned.add(key)
            outcome.prefetched.append(key)
        pinned = {key for key in pinned if key[0] != event.layer}
        outcomes.append(outcome)
    return outcomes
