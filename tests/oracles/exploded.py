"""Hit counts from libcachesim, for events exploded into one-expert events.

Order: events as recorded; inside an event the lightest expert first and the heaviest last, as the replay touches them.
With one expert per event, event-atomic caching is ordinary caching, so LRU, LFU, FIFO and Belady must give the same
hit at the same place.

What libcachesim 0.3.5 does (read in its LFU.c and Belady.c, and measured here against a scan of every slot):

- LFU counts since insertion (an insertion counts 1, evicted objects are forgotten) and keeps one list for each count,
  to whose tail an object moves when its count rises; the head goes first. Its comment calls that FIFO, but an object
  enters its list at its last access, so ties are broken by last access. This is the rule of the project. Ties by
  insertion give other hits.
- LRU and FIFO: no ties, one order each.
- Belady has mandatory insertion: it evicts before it inserts, so the object at hand is never the victim, even if it is
  never used again. The next access must be given with each request, 2**63 - 1 for never (-1 aborts the process). Only
  objects that are never used again can tie, so the hits do not depend on ties.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import libcachesim

NEVER = 2**63 - 1
POLICIES = ("lru", "lfu", "fifo", "belady")
_CLASSES = {
    "lru": libcachesim.LRU,
    "lfu": libcachesim.LFU,
    "fifo": libcachesim.FIFO,
    "belady": libcachesim.Belady,
}


def explode(events: Iterable[tuple[int, Sequence[int]]]) -> list[tuple[int, int]]:
    """(layer, experts lightest first) of each event to one list of (layer, expert)."""
    return [(layer, expert) for layer, experts in events for expert in experts]


def next_accesses(accesses: Sequence[Hashable]) -> list[int]:
    """The position of the next access of the same object; NEVER if there is none."""
    following: dict[Hashable, int] = {}
    positions = [NEVER] * len(accesses)
    for position in range(len(accesses) - 1, -1, -1):
        positions[position] = following.get(accesses[position], NEVER)
        following[accesses[position]] = position
    return positions


def libcachesim_hits(accesses: Sequence[Hashable], slots: int, policy: str) -> list[bool]:
    """Whether each access hits in a cache of `slots` objects of one size."""
    names = {key: number for number, key in enumerate(dict.fromkeys(accesses), start=1)}
    nexts = next_accesses(accesses) if policy == "belady" else [-2] * len(accesses)
    # The default table of 2**24 buckets takes 128 MiB for each cache.
    cache = _CLASSES[policy](cache_size=slots, hashpower=14)
    request = libcachesim.Request(obj_size=1)
    hits = []
    for clock, (key, following) in enumerate(zip(accesses, nexts, strict=True)):
        request.obj_id = names[key]
        request.clock_time = clock
        request.next_access_vtime = following
        hits.append(bool(cache.get(request)))
    return hits


def scanned_hits(accesses: Sequence[Hashable], slots: int, policy: str) -> list[bool]:
    """The same by scanning every slot at every eviction, in plain Python."""
    nexts = next_accesses(accesses)
    ranks: dict[Hashable, tuple[int, ...]] = {}
    hits = []
    for clock, key in enumerate(accesses):
        hit = key in ranks
        hits.append(hit)
        if not hit and len(ranks) == slots:
            del ranks[min(ranks, key=ranks.__getitem__)]
        match policy:
            case "lru":
                ranks[key] = (clock,)
            case "fifo":
                ranks.setdefault(key, (clock,))
            case "lfu":
                ranks[key] = (ranks[key][0] + 1 if hit else 1, clock)
            case "belady":
                ranks[key] = (-nexts[clock], clock)
            case _:
                raise ValueError(policy)
    return hits
