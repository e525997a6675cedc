"""How many drafted tokens the model accepts, drawn so that it is the same on every machine.

The draft of j tokens ahead is right with probability p_j. Verification keeps drafts up to the first wrong one, and one
token of its own behind them. Whether a position's draft is right is a hash of seed, request and position: under
one p it does not depend on how many tokens are drafted, so runs of different k meet the same luck.
"""

from dataclasses import dataclass

from moesim.errors import ConfigError
from moesim.seeded_hash import hashed

_ACCEPTANCE = 0x61636365
"""Keeps these draws apart from others of the same seed and place."""


@dataclass(frozen=True)
class Acceptance:
    """`probabilities[j - 1]` is p_j; the last goes on."""

    probabilities: tuple[float, ...]
    seed: int = 0

    def of_draft(self, ahead: int) -> float:
        """p_j for the draft `ahead` = j tokens ahead, from 1."""
        return self.probabilities[min(ahead, len(self.probabilities)) - 1]

    def accepted(self, request: int, position: int, drafted: int) -> int:
        """How many of `drafted` tokens behind the token at `position` are kept."""
        for ahead in range(1, drafted + 1):
            if hashed((_ACCEPTANCE, self.seed, request, position + ahead)) >= self.of_draft(ahead) * 2**64:
                return ahead - 1
        return drafted


def acceptance(probability: float, by_position: str, seed: int) -> Acceptance:
    """One probability for every position, or `by_position`: p_1/p_2/... Raises ConfigError outside 0 to 1."""
    try:
        probabilities = tuple(float(each) for each in by_position.split("/")) if by_position else (probability,)
    except ValueError:
        probabilities = (-1.0,)
    if not all(0 <= each <= 1 for each in probabilities):
        given = f"by_position={by_position}" if by_position else f"acceptance={probability:g}"
        raise ConfigError(f"policy: draft[{given}]: expected 0 to 1, such as 0.9, or 0.95/0.9 by position")
    return Acceptance(probabilities, seed)
