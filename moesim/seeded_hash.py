"""Draws that are the same on every machine: a hash of what they are drawn for, in place of a generator's state.

So a draw depends on the seed and on the place alone (request, position, layer), never on what was drawn before: a
token's draw is the same in every stretch of a trace and under every policy.
"""

from collections.abc import Iterable

MASK = (1 << 64) - 1


def mixed(state: int) -> int:
    """One step of splitmix64 (G. L. Steele et al., OOPSLA 2014): 64 well mixed bits."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def hashed(place: Iterable[int]) -> int:
    """64 bits that depend on every number of `place` and on their order."""
    state = 0
    for number in place:
        state = mixed(state ^ (number & MASK))
    return state
