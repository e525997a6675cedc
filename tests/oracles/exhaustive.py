"""The least possible number of misses, by trying every choice of victims.

For event-atomic caching: an event needs a set of experts present at once, and every expert of the set that is absent
when the event starts is one miss. Exponential; meant for a dozen events over half a dozen slots.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from itertools import combinations


def fewest_misses(events: Sequence[Sequence[Hashable]], slots: int) -> int:
    """Every missing expert must be inserted, and nothing that the event needs may be evicted.

    An event of more experts than slots runs in pieces of `slots`, in the order in which its experts are listed. Each
    piece is an event of its own.
    """
    sets = [frozenset(event[start : start + slots]) for event in events for start in range(0, len(event), slots)]

    @cache
    def best(number: int, present: frozenset[Hashable]) -> int:
        if number == len(sets):
            return 0
        needed = sets[number]
        others = present - needed
        # Holding a slot empty never helps: the set of later states that can be reached only shrinks.
        keep = min(len(others), slots - len(needed))
        return len(needed - present) + min(
            best(number + 1, needed | frozenset(kept)) for kept in combinations(sorted(others), keep)
        )

    return best(0, frozenset())


def fewest_misses_with_bypass(events: Sequence[Sequence[Hashable]], slots: int) -> int:
    """An event runs its missing experts outside the slots; afterwards any `slots` of all that was there may stay."""
    sets = [frozenset(event) for event in events]

    @cache
    def best(number: int, present: frozenset[Hashable]) -> int:
        if number == len(sets):
            return 0
        needed = sets[number]
        at_hand = present | needed
        return len(needed - present) + min(
            best(number + 1, frozenset(kept)) for kept in combinations(sorted(at_hand), min(slots, len(at_hand)))
        )

    return best(0, frozenset())
