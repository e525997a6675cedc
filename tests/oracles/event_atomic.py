"""Event-atomic expert caching in plain Python: hits, victims and the reason of every miss.

A second implementation, written from the description of the semantics alone and sharing no line with the package. It
scans every slot at every eviction. Use it on small traces and on stretches of real ones.

Where the description leaves something open, this is how it is read here:

 1. Present layer. The layer that an eviction is seen from is the layer of the event that runs, for demand victims and
    for prefetch victims alike; not the layer that is prefetched for.
 2. Insertion order. Missing experts are inserted in the order in which they were touched, lightest gate weight first;
    prefetched ones in the order of the ranking, best first.
 3. Touching. Hits and misses of an event are touched in one sequence, so recency inside an event follows gate weight
    whether the expert was present or not. A copy that a miss starts does not touch again.
 4. A prefetched expert that nobody has accessed yet has a last access: the moment of its insertion. Its count is 0 in
    lfu (only accesses count); an expert inserted on demand starts with 1.
 5. A prefetch that names a resident expert copies nothing and pins the resident until its layer has run. It refreshes
    the pass and the recency under least-stale (SpecMD: selection refreshes); under fifo, lru and lfu it changes
    nothing, for it is not an access. The cyclic key counts as least-stale here.
 6. The residents in a prefetch list are pinned before the first victim of that list is chosen, so one entry of the
    list never evicts another.
 7. A dropped prefetch is not tried again; the rest of its list is still tried (and can only succeed if resident).
 8. Pins yield to demand. If no unpinned victim is left, a demand copy takes, in this order: an expert prefetched for
    this layer that the router did not choose, an expert prefetched for a later layer, a resident that a later wave of
    this event needs. With one top-k everywhere and a layer offset of 1 this cannot happen.
 9. Waves. An event of more experts than slots is cut, in order of first use, into pieces of exactly `slots` (the last
    may be smaller). Each piece is classified when it starts, as an event of its own: a full piece occupies every slot,
    so what a later piece needs cannot survive it. Prefetches follow the last piece; a prefetch may evict the experts
    of earlier pieces.
10. Cache 0 is a workspace of as many slots as the two largest events have accesses together (accesses as the policy
    issues them: predicted ids under speculate-and-execute). After an event everything is released that is not pinned
    for a later layer. Releasing is not evicting: it makes no victims and no collisions.
11. Prefetches at the event of (step, layer) are the ranking recorded for (step, layer + offset), if that is a decode
    event and has one. Nothing is prefetched across steps.
12. Prefill events use the true ids, fetch every miss and ignore predictions. That whole layers may be streamed there
    is a matter of bytes and time, not of accesses.
13. resident-execute fetches on a miss where there is no prediction (layer 0, prefill), as speculate-and-execute does;
    elsewhere a miss is counted, given a reason and not fetched. It counts as an access all the same.
14. Compulsory: the first access ever of this expert in this run, whether or not it was prefetched and lost before.
15. Mispredicted: a ranking existed for this event and did not name the expert. A predicted expert that is missing
    (its prefetch was dropped) falls through to the later reasons. Late never occurs: in flight is present.
16. Collision: the last eviction of this expert, for demand or for prefetch, happened in the same step.
17. Policy: belady at the same number of slots, without prefetch and from a cold start, on the same accesses, hits this
    very access. At cache 0 that optimum never hits.
18. belady breaks ties by last access, the older first. Experts of one layer often share their next event; which of
    them goes does not change the number of misses but decides which access is the miss.
19. belady's key uses the accesses as the policy issues them. The event under way does not count as a next event; an
    expert that is never selected again is farthest, and ties with all others like it. Where an event runs in waves,
    the key is the next wave: by the next event alone belady is not optimal, for it would keep an expert of the second
    wave, which the first wave flushes, and evict one of the first.
20. left-first: an expert is left if its layer is smaller than the present one. Experts of the present layer are not
    left. The order is stale before current, left before the rest, then last access.
21. Stale: last accessed or selected in an earlier step. Since a selection refreshes recency too (5.), the flag says
    nothing new under the last-access key: that variant is lru in which selections count as accesses.
22. A step is a pass: its number is what collisions and staleness compare.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

Key = tuple[int, int]  # (layer, expert)

EVICTIONS = (
    "lru",
    "lfu",
    "fifo",
    "least-stale[insertion]",
    "least-stale[last-access]",
    "least-stale[layer]",
    "least-stale[left-first]",
    "least-stale[cyclic]",
    "belady",
)
EXECUTIONS = ("demand", "prefetch-and-refetch", "speculate-and-execute", "resident-execute")
NEVER = float("inf")


@dataclass(frozen=True)
class Event:
    """One layer of one step.

    `experts` are distinct and ordered from the lightest to the heaviest gate weight. `predicted` is the ranking made
    for this very event, best first, cut to what is to be prefetched. `first_use` orders the experts for waves; without
    it the heaviest expert is used first.
    """

    step: int
    layer: int
    experts: tuple[int, ...]
    predicted: tuple[int, ...] | None = None
    decode: bool = True
    first_use: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Access:
    event: int
    layer: int
    expert: int
    hit: bool
    reason: str | None  # compulsory, mispredicted, collision, policy, capacity; None for a hit


@dataclass(frozen=True)
class Victim:
    event: int
    layer: int
    expert: int
    cause: str  # demand or prefetch


@dataclass
class Resident:
    inserted: int
    last_access: int
    count: int
    step: int


@dataclass
class Replay:
    accesses: list[Access] = field(default_factory=list)
    victims: list[Victim] = field(default_factory=list)
    copied_on_demand: list[tuple[int, Key]] = field(default_factory=list)
    prefetched: list[tuple[int, Key]] = field(default_factory=list)
    dropped: list[tuple[int, Key]] = field(default_factory=list)
    most_resident: int = 0

    @property
    def hits(self) -> int:
        return sum(access.hit for access in self.accesses)

    @property
    def misses(self) -> int:
        return len(self.accesses) - self.hits

    def reasons(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for access in self.accesses:
            if access.reason is not None:
                found[access.reason] = found.get(access.reason, 0) + 1
        return found


def speculates(event: Event, execution: str) -> bool:
    return execution != "demand" and event.decode and event.predicted is not None


def accessed(event: Event, execution: str) -> tuple[int, ...]:
    """The ids that the policy asks the cache for, lightest first."""
    if execution == "speculate-and-execute" and speculates(event, execution):
        return tuple(reversed(event.predicted))
    return event.experts


def waves_of(event: Event, ids: tuple[int, ...], slots: int) -> list[tuple[int, ...]]:
    if len(ids) <= slots:
        return [ids]
    order = event.first_use if event.first_use is not None else tuple(reversed(ids))
    assert set(order) == set(ids)
    pieces = [order[start : start + slots] for start in range(0, len(order), slots)]
    return [tuple(expert for expert in ids if expert in piece) for piece in pieces]


def cyclic_distance(layer: int, present: int, layers: int) -> int:
    return ((layer - present - 1) % layers) + 1


def simulate(
    events: Sequence[Event],
    slots: int,
    eviction: str = "lru",
    execution: str = "demand",
    *,
    layers: int | None = None,
    layer_offset: int = 1,
) -> Replay:
    """Replay `events` with `slots` slots in one shared pool; 0 slots is the emptied workspace (on-demand)."""
    assert eviction in EVICTIONS, eviction
    assert execution in EXECUTIONS, execution
    layers = max(event.layer for event in events) + 1 if layers is None else layers
    issued = [accessed(event, execution) for event in events]
    emptied = slots == 0
    capacity = sum(sorted(map(len, issued))[-2:]) if emptied else slots
    event_at = {(event.step, event.layer): number for number, event in enumerate(events)}
    assert len(event_at) == len(events), "one event for each layer of each step"

    optimum_hits: set[tuple[int, Key]] = set()
    if not emptied and eviction != "belady":
        bare = [
            Event(event.step, event.layer, ids, decode=event.decode, first_use=_first_use(event, ids))
            for event, ids in zip(events, issued, strict=True)
        ]
        best = simulate(bare, slots, "belady", layers=layers)
        optimum_hits = {(a.event, (a.layer, a.expert)) for a in best.accesses if a.hit}

    replay = Replay()
    residents: dict[Key, Resident] = {}
    pinned: set[Key] = set()
    accessed_before: set[Key] = set()
    evicted_in: dict[Key, int] = {}
    clock = 0

    def tick() -> int:
        nonlocal clock
        clock += 1
        return clock

    uses: dict[Key, list[tuple[int, int]]] = {}  # (event, wave) in order
    for number, (event, ids) in enumerate(zip(events, issued, strict=True)):
        assert len(set(ids)) == len(ids), "experts of an event are distinct"
        for position, wave in enumerate(waves_of(event, ids, capacity)):
            for expert in wave:
                uses.setdefault((event.layer, expert), []).append((number, position))

    def next_use(key: Key, now: tuple[int, int]) -> tuple[float, int]:
        moments = uses.get(key, [])
        following = bisect_right(moments, now)
        return moments[following] if following < len(moments) else (NEVER, 0)

    def rank(key: Key, now: tuple[int, int]) -> tuple[float, ...]:
        """Smallest goes first."""
        event, resident = events[now[0]], residents[key]
        current = resident.step == event.step
        match eviction:
            case "fifo":
                return (resident.inserted,)
            case "lru":
                return (resident.last_access,)
            case "lfu":
                return (resident.count, resident.last_access)
            case "belady":
                later_event, later_wave = next_use(key, now)
                return (-later_event, -later_wave, resident.last_access)
            case "least-stale[insertion]":
                return (current, resident.inserted)
            case "least-stale[last-access]":
                return (current, resident.last_access)
            case "least-stale[layer]":
                return (current, key[0], resident.last_access)
            case "least-stale[left-first]":
                return (current, key[0] >= event.layer, resident.last_access)
            case "least-stale[cyclic]":
                return (-cyclic_distance(key[0], event.layer, layers), resident.last_access)
        raise AssertionError(eviction)

    def evict(candidates: list[Key], now: tuple[int, int], cause: str) -> None:
        victim = min(candidates, key=lambda key: rank(key, now))
        del residents[victim]
        pinned.discard(victim)
        evicted_in[victim] = events[now[0]].step
        replay.victims.append(Victim(now[0], *victim, cause))

    def reason_of(key: Key, number: int) -> str:
        event = events[number]
        if key not in accessed_before:
            return "compulsory"
        if speculates(event, execution) and key[1] not in event.predicted:
            return "mispredicted"
        if evicted_in.get(key) == event.step:
            return "collision"
        return "policy" if (number, key) in optimum_hits else "capacity"

    def make_room_for_demand(wave: set[Key], later: set[Key], now: tuple[int, int]) -> None:
        if len(residents) < capacity:
            return
        free = [key for key in residents if key not in wave]
        layer = events[now[0]].layer
        groups = [
            [key for key in free if key not in pinned and key not in later],
            [key for key in free if key in pinned and key[0] == layer and key not in later],
            [key for key in free if key in pinned and key[0] != layer],
            [key for key in free if key in later],
        ]
        evict(next(group for group in groups if group), now, "demand")

    for number, event in enumerate(events):
        fetches = not (execution == "resident-execute" and speculates(event, execution))
        waves = waves_of(event, issued[number], capacity)
        wave_keys: set[Key] = set()
        for position, wave in enumerate(waves):
            keys = [(event.layer, expert) for expert in wave]
            wave_keys = set(keys)
            later = {(event.layer, expert) for rest in waves[position + 1 :] for expert in rest}

            missing = [key for key in keys if key not in residents]
            for key in keys:
                hit = key in residents
                replay.accesses.append(Access(number, *key, hit, None if hit else reason_of(key, number)))

            touched = {key: tick() for key in keys}
            for key in keys:
                if key in residents:
                    residents[key].last_access = touched[key]
                    residents[key].count += 1
                    residents[key].step = event.step
            accessed_before.update(keys)

            if fetches:
                for key in missing:
                    make_room_for_demand(wave_keys, later, (number, position))
                    residents[key] = Resident(tick(), touched[key], 1, event.step)
                    replay.copied_on_demand.append((number, key))
                    replay.most_resident = max(replay.most_resident, len(residents))

        target = event_at.get((event.step, event.layer + layer_offset))
        if event.decode and target is not None and speculates(events[target], execution):
            ranking = [(events[target].layer, expert) for expert in events[target].predicted]
            for key in ranking:
                if key in residents:
                    pinned.add(key)
                    if eviction.startswith("least-stale"):
                        residents[key].step = event.step
                        residents[key].last_access = tick()
            for key in ranking:
                if key in residents:
                    continue
                if len(residents) == capacity:
                    free = [other for other in residents if other not in wave_keys and other not in pinned]
                    if not free:
                        replay.dropped.append((number, key))
                        continue
                    evict(free, (number, len(waves) - 1), "prefetch")
                now = tick()
                residents[key] = Resident(now, now, 0, event.step)
                pinned.add(key)
                replay.prefetched.append((number, key))
                replay.most_resident = max(replay.most_resident, len(residents))

        pinned = {key for key in pinned if key[0] != event.layer}
        if emptied:
            residents = {key: resident for key, resident in residents.items() if key in pinned}
    return replay


def _first_use(event: Event, ids: tuple[int, ...]) -> tuple[int, ...] | None:
    """An event's own order of first use holds for its true ids only."""
    return event.first_use if event.first_use is not None and set(event.first_use) == set(ids) else None


def belady_with_bypass(events: Sequence[Event], slots: int) -> int:
    """Misses of belady that may drop what it has just used: after each event, keep the residents needed soonest.

    An expert may be run from outside the slots, so the event itself takes none. Ties: (layer, expert).
    """
    kept: set[Key] = set()
    misses = 0
    for number, event in enumerate(events):
        needed = {(event.layer, expert) for expert in event.experts}
        misses += len(needed - kept)
        distance = {
            key: next(
                (
                    later
                    for later in range(number + 1, len(events))
                    if events[later].layer == key[0] and key[1] in events[later].experts
                ),
                NEVER,
            )
            for key in kept | needed
        }
        kept = set(sorted(distance, key=lambda key: (distance[key], key))[:slots])
    return misses
