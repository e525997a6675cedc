"""Stack distances of the offline optimum: how many slots an access would have needed to hit under belady.

Belady's rule with mandatory insertion, event by event, is a stack algorithm like LRU: the order in which experts
would be given up does not depend on the number of slots, so the caches of all sizes nest and one pass gives them all
(R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970). The first C
entries of the stack are the cache of C slots, wherever C is not below the largest event.

An expert that comes to the top pushes down the one that was there. At each place the one whose next use is nearer
stays and the other is carried on, until the place that the newcomer left is filled. So what is carried past a place is
the running minimum of the keys above it, and a whole push is two vector operations. Keys are larger the nearer the
next event; those of one event are told apart by the expert's number, which decides who misses and not how many do.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.curve.accesses import Accesses, Numbers

_EMPTY = -1
_PINNED = np.iinfo(np.int64).max
NOBODY = -1
"""Fills the rows of a round behind the experts of a smaller event."""


class OptimumStacks:
    """One stack for each of several pools, pushed side by side. A pool's experts are numbered 0 to `width` - 1.

    `never` is the number that stands for the next use of an expert that is not used again: above all events.
    """

    def __init__(self, pools: int, width: int, never: int) -> None:
        self._keys = np.full((pools, width), _EMPTY, np.int64)
        self._filled = np.zeros(pools, np.int64)
        self._width = width
        self._never = never
        self._pool = np.arange(pools)[:, None]

    def push(self, events: Numbers, experts: Numbers, next_events: Numbers) -> Numbers:
        """Run one event of each pool: [pools, most], the place of each expert before it from 1, 0 if it had none.

        `events` [pools]: their numbers. `experts` [pools, most]: the pool's own numbers, NOBODY at the end of the rows
        of smaller events. `next_events` [pools, most]: the next event that uses each.
        """
        keys, width = self._keys, self._width
        # The keys of the event's experts name it as their next: they are the pool's largest.
        member = keys >= ((self._never + 1 - events) * width)[:, None]
        pool, place = member.nonzero()
        depth = np.zeros(keys.shape, np.int64)
        depth[pool, keys[pool, place] % width] = place + 1
        here = experts != NOBODY
        depths = np.where(here, depth[self._pool, experts], 0)
        keys[pool, place] = _EMPTY  # a hole, which ends the push that comes to it
        taken = here.sum(1)
        for number, reach in enumerate(self._reaches(pool, place, taken, experts.shape[1])):
            rows = slice(None) if taken.min() > number else np.flatnonzero(taken > number)
            pushed = keys[rows, :reach]
            carried = np.minimum.accumulate(pushed[:, :-1], axis=1)
            np.maximum(carried, pushed[:, 1:], out=pushed[:, 1:])
            pushed[:, 0] = _PINNED  # nothing that the event needs is given up for it
            if not isinstance(rows, slice):
                keys[rows, :reach] = pushed
        pool, number = here.nonzero()
        keys[pool, number] = (self._never + 1 - next_events[pool, number]) * width + experts[pool, number]
        return depths

    def _reaches(self, pool: Numbers, place: Numbers, taken: Numbers, most: int) -> list[int]:
        """How far down each push can go: to the holes from the top, then to the places behind the last."""
        held = np.bincount(pool, minlength=len(self._keys))
        number = np.arange(most)
        holes = self._filled[:, None] + number - held[:, None]
        holes[number >= taken[:, None]] = -1
        rank = np.arange(len(pool)) - (np.cumsum(held) - held)[pool]
        holes[pool, rank] = place
        self._filled += taken - held
        reaches: list[int] = (holes.max(0) + 1).tolist()
        return reaches


def next_events(blocks: list[Accesses], experts: int) -> list[NDArray[np.int32]]:
    """For each access of each block, the next event that uses its expert; the number of all events if none does.

    Takes four bytes an access.
    """
    end = sum(block.events for block in blocks)
    following = np.full(experts, end, np.int32)
    found = []
    for block in reversed(blocks):
        end -= block.events
        order = np.argsort(block.experts, kind="stable")
        sorted_experts = block.experts[order]
        event = (block.event_of + end).astype(np.int32)[order]
        latest = np.append(sorted_experts[1:] != sorted_experts[:-1], True)[: len(order)]
        later = np.empty_like(event)
        later[:-1] = event[1:]
        later[latest] = following[sorted_experts[latest]]
        first = np.flatnonzero(np.append(True, latest[:-1])[: len(order)])
        following[sorted_experts[first]] = event[first]
        nexts = np.empty_like(event)
        nexts[order] = later
        found.append(nexts)
    return found[::-1]


def optimum_distances(blocks: list[Accesses], layers: int, experts: int, pools: int) -> Iterator[Numbers]:
    """For each block, [accesses]: the fewest slots of its pool with which offline-optimal eviction hits; 0 for none.

    `pools` is 1 for one pool that the layers share, or `layers` for one each. A cache is counted from the size of its
    largest event.
    """
    width = layers * experts // pools
    never = sum(block.events for block in blocks)
    stacks = OptimumStacks(pools, width, never)
    first_event = 0
    for block, nexts in zip(blocks, next_events(blocks, layers * experts), strict=True):
        found = np.empty(len(block.experts), np.int64)
        for number, rows, part in _rounds(block, pools):
            who = np.full(rows.shape, NOBODY, np.int64)
            when = np.zeros(rows.shape, np.int64)
            who[rows], when[rows] = block.experts[part], nexts[part]
            if pools > 1:
                who[rows] %= width
            depths = stacks.push(first_event + number + np.arange(pools), who, when)
            found[part] = depths[rows]
        first_event += block.events
        yield found


def _rounds(block: Accesses, pools: int) -> Iterable[tuple[int, NDArray[np.bool_], slice]]:
    """`pools` events at a time: the first one's number, [pools, most] where they have experts, and their accesses."""
    sizes = np.diff(block.starts)
    for number in range(0, block.events, pools):
        here = sizes[number : number + pools]
        yield (
            number, np.arange(here.max(initial=0)) < here[:, None],
            slice(int(block.starts[number]), int(block.starts[number + pools])),
        )
