"""Stack distances of LRU: how many slots an access would have needed to hit.

Between events an LRU cache of C slots holds the C experts touched last, provided that every event fits into C. So an
access hits if, when its event begins, fewer than C other experts have been touched since its own last touch: its
*stack distance* (R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2),
1970) taken at the start of the event. docs/curves.md derives this from the event-atomic rules, and what fails when an
event does not fit. With every access an event of its own this is the plain stack distance.

Number the touches 0, 1, 2, …; let p(t) be the touch before t of the same expert, -1 if there is none. Of an access
whose last touch is p and whose event begins at touch q, the distance is

    1 + #{t : p < t < q, p(t) < p}  =  #{t < q : p(t) < p} - p,

since every touch t ≤ p has p(t) < p. That count is taken for a chunk of accesses at a time. The chunk is cut into
groups of whole events. Touches before the group are counted in a bit set per group (bit v: some earlier touch t has
p(t) = v), one lookup for each access; those of the group are compared pair by pair. A chunk begins with one touch of
every expert seen so far, in order of recency, so that nothing grows with the trace.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.curve.accesses import Accesses

CHUNK_ACCESSES = 1 << 14
GROUP_ACCESSES = 32
_WORD = 64

COLD = 0
"""The distance of a first access, which no number of slots would hit."""


class StackDistances:
    """LRU stack distances of consecutive blocks of accesses; remembers what was touched, in order of recency.

    `experts` is the number of distinct experts that can occur.
    """

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self._recency = np.empty(0, np.int32)

    def of(self, block: Accesses) -> NDArray[np.int32]:
        """[accesses]: the fewest slots, not below the largest event, with which each access hits, or COLD."""
        found = np.empty(len(block.experts), np.int32)
        event = 0
        while event < block.events:
            begin = block.starts[event]
            end = int(np.searchsorted(block.starts, begin + CHUNK_ACCESSES, "right")) - 1
            end = max(end, event + 1)  # one event alone may be larger
            part = slice(int(begin), int(block.starts[end]))
            found[part] = self._chunk(block.experts[part], block.starts[event : end + 1] - begin)
            event = end
        return found

    def _chunk(self, experts: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        seen, count = len(self._recency), len(experts)
        if not count:
            return np.empty(0, np.int32)
        last = self._last_touches(experts)
        group, event_start, group_start = _groups(starts)
        before = _counted_before_groups(last, group, group_start, seen)
        within = _counted_within_groups(last, group, event_start, group_start)
        distances = before + within - last
        distances[last < 0] = COLD
        return distances

    def _last_touches(self, experts: NDArray[np.int32]) -> NDArray[np.int32]:
        """[accesses]: the touch before each, numbered from the chunk's start; those seen before come first."""
        seen = len(self._recency)
        touched = np.concatenate([self._recency, experts])
        bits = len(touched).bit_length()
        keys: NDArray[Any] = touched.astype(np.uint32 if self.experts << bits < 1 << 32 else np.uint64)
        keys <<= bits
        keys |= np.arange(len(touched), dtype=keys.dtype)
        keys.sort()
        touch = (keys & ((1 << bits) - 1)).astype(np.int32)
        keys >>= bits
        again = keys[1:] == keys[:-1]
        last = np.full(len(touched), -1, np.int32)
        last[touch[1:]] = np.where(again, touch[:-1], -1)
        latest = touch[np.append(~again, True)]
        latest.sort()
        self._recency = touched[latest]
        return last[seen:]


def _groups(starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Group of each access, start of its event, and start of each group: whole events, begun within its stretch."""
    sizes = np.diff(starts)
    held = sizes > 0
    begins = starts[:-1][held]
    stretch = begins // GROUP_ACCESSES
    first = np.flatnonzero(np.diff(stretch, prepend=-1))
    group_of_event = np.cumsum(np.diff(stretch, prepend=stretch[0]) != 0)
    return np.repeat(group_of_event, sizes[held]), np.repeat(begins, sizes[held]), begins[first]


def _counted_before_groups(
    last: NDArray[np.int32], group: NDArray[np.int64], group_start: NDArray[np.int64], seen: int
) -> NDArray[np.int32]:
    """[accesses]: touches before the access's group whose own last touch is before the access's."""
    words = (seen + len(last)) // _WORD + 1
    cold = last < 0
    bits = np.zeros((len(group_start) + 1, words), np.uint64)
    warm = last[~cold]
    place = (group[~cold] + 1) * words + (warm >> 6)
    # Each touch is the last touch of at most one other, so no bit is added twice.
    np.add.at(bits.reshape(-1), place, np.uint64(1) << (warm & 63).astype(np.uint64))
    np.bitwise_or.accumulate(bits, axis=0, out=bits)
    ahead = np.cumsum(np.bitwise_count(bits), axis=1, dtype=np.int32)
    at = np.maximum(last, 0)
    mine = group * words + (at >> 6)
    word = bits.reshape(-1)[mine]
    below = (np.uint64(1) << (at & 63).astype(np.uint64)) - np.uint64(1)
    # all of the word's bits are in `ahead`: take off those that are not below
    counted = ahead.reshape(-1)[mine] - np.bitwise_count(word & ~below)
    cold_before = np.concatenate([[0], np.cumsum(cold)])[group_start]
    before: NDArray[np.int32] = (counted + seen + cold_before[group]).astype(np.int32)
    return before


def _counted_within_groups(
    last: NDArray[np.int32],
    group: NDArray[np.int64],
    event_start: NDArray[np.int64],
    group_start: NDArray[np.int64],
) -> NDArray[np.int32]:
    """[accesses]: touches of the access's group, before its event, whose own last touch is before the access's."""
    column = np.arange(len(last)) - group_start[group]
    width = int(column.max()) + 1
    # One row per place in the group: comparisons then run along all groups at once. Padding is never smaller.
    shape = (width, len(group_start))
    lasts = np.full(shape, np.iinfo(np.int32).max, np.int32)
    lasts[column, group] = last
    begins = np.zeros(shape, np.uint8)
    begins[column, group] = event_start - group_start[group]
    counted = np.zeros(shape, np.uint8)
    for place in range(int(begins.max())):
        smaller = lasts[place] < lasts[place + 1 :]
        smaller &= begins[place + 1 :] > place
        counted[place + 1 :] += smaller
    within: NDArray[np.int32] = counted[column, group].astype(np.int32)
    return within
