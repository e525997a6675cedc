"""Which experts of an event matter enough for high precision: HOBBIT's rule (arXiv 2411.01433).

A token's experts are sorted by gate weight, the weights scaled to sum to 1, and s_i is the weight of all experts
before the i-th. The heaviest has s = 0 whatever it weighs.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError, nearest
from moesim.events import Step
from moesim.model import BITS_PER_WEIGHT, Precision


def weight_before(gates: Sequence[Sequence[tuple[int, float]]]) -> dict[int, float]:
    """s_i of each expert of the event; an expert of several tokens has the smallest, for one token needs it most.

    `gates`: each token's experts with their weights, heaviest first.
    """
    before: dict[int, float] = {}
    for token in gates:
        total = sum([weight for _, weight in token]) or 1.0
        passed = 0.0
        for expert, weight in token:
            share = passed / total
            if share < before.get(expert, 2.0):
                before[expert] = share
            passed += weight
    return before


def high_precision(step: Step, layer: int, limit: float) -> set[int]:
    """The experts of the event with s_i of at most `limit`."""
    return {expert for expert, share in weight_before(step.gates(layer)).items() if share <= limit}


def low_precision(rule: str, name: str) -> Precision:
    """The precision of that name. Raises ConfigError with the nearest known names."""
    if name not in BITS_PER_WEIGHT:
        raise ConfigError(f"policy: {rule}[low={name}]: {nearest(name, BITS_PER_WEIGHT)}")
    return name
