"""Which modes a run measures: those asked for by name, with every predictor, first layer and cache size asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from moesim.errors import InputError, nearest
from moesim.quality.foresight import Foresight
from moesim.quality.modes.cache_prior import CachePrior
from moesim.quality.modes.drop import Drop
from moesim.quality.modes.low_precision import LowPrecision, rounded_by_layer
from moesim.quality.modes.max_rank import CumulativeThreshold, MaxRank
from moesim.quality.modes.mode import Mode
from moesim.quality.modes.open_loop import OpenLoop
from moesim.quality.modes.resident_execute import ResidentExecute
from moesim.quality.modes.speculate_and_execute import SpeculateAndExecute
from moesim.quality.modes.substitute import Substitute
from moesim.quality.modes.true_routing import TrueRouting
from moesim.record.moe_layers import MoeLayer

SPECULATE, OPEN_LOOP, RESIDENT_EXECUTE = "speculate-and-execute", "open-loop", "resident-execute"
DROP, SUBSTITUTE, LOW_PRECISION = "drop", "substitute", "low-precision"
CACHE_PRIOR, MAX_RANK, CUMULATIVE_THRESHOLD = "cache-prior", "max-rank", "cumulative-threshold"
MODES: Final = (
    SPECULATE, OPEN_LOOP, RESIDENT_EXECUTE, DROP, SUBSTITUTE, CACHE_PRIOR, MAX_RANK, CUMULATIVE_THRESHOLD,
    LOW_PRECISION,
)
STRENGTHS: Final = (0.2, 0.5, 0.8)
"""The paper's λ: quality is said to fall past 0.8."""


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    `foresights` are the predictors, each used by both kinds of speculation. The last of them feeds what has a cache and
    the layers from `first_layers` on. `vectors` are the default vectors [L, experts, hidden], if there are any.
    """

    names: Sequence[str]
    """Names of modes; empty for all that this model allows."""
    foresights: Sequence[Foresight]
    first_layers: Sequence[int]
    cache_fractions: Sequence[float]
    vectors: torch.Tensor | None

    def modes(self, layers: Sequence[MoeLayer]) -> tuple[list[Mode], list[str]]:
        """The modes, true routing first: once in whole passes, and once stepped if any mode is; and what is left out.

        Where modes are asked for by name nothing is left out.

        Raises:
            InputError: an unknown mode; one by name that lacks its default vectors, its slots or its layers.
        """
        for name in self.names:
            if name not in MODES:
                raise InputError(f"mode {name!r} is unknown: {nearest(name, MODES)}")
        asked: list[Mode] = []
        left_out: list[str] = []
        for name in MODES:
            for make in self._makers(name, layers) if name in (self.names or MODES) else ():
                try:
                    asked.append(make())
                except InputError as error:
                    if self.names:
                        raise
                    left_out.append(f"{name}: {error}")
        stepped = [TrueRouting(stepped=True)] if any(mode.stepped for mode in asked) else []
        return [TrueRouting(), *stepped, *asked], list(dict.fromkeys(left_out))

    def _makers(self, name: str, layers: Sequence[MoeLayer]) -> Iterator[Callable[[], Mode]]:
        feeding, fractions = self.foresights[-1], self.cache_fractions
        if name == SPECULATE:
            yield from (partial(SpeculateAndExecute, layers, each) for each in self.foresights)
            yield from (partial(SpeculateAndExecute, layers, feeding, first) for first in self.first_layers)
        elif name == OPEN_LOOP:
            yield from (partial(OpenLoop, layers, each) for each in self.foresights)
        elif name == RESIDENT_EXECUTE:
            yield from (partial(ResidentExecute, layers, feeding, each, self.vectors) for each in fractions)
        elif name == DROP:
            for renormalise in (False, True):
                yield from (partial(Drop, layers, feeding, each, renormalise=renormalise) for each in fractions)
        elif name == SUBSTITUTE:
            for weight in ("original", "own"):
                yield from (partial(Substitute, layers, feeding, each, weight) for each in fractions)
        elif name == CACHE_PRIOR:
            for strength in STRENGTHS:
                yield from (partial(CachePrior, layers, each, strength) for each in fractions)
        elif name == MAX_RANK:
            yield from (partial(MaxRank, layers, each) for each in fractions)
        elif name == CUMULATIVE_THRESHOLD:
            yield from (partial(CumulativeThreshold, layers, each) for each in fractions)
        else:
            rounded = {bits: rounded_by_layer(layers, bits) for bits in (4, 8)}
            yield from (partial(LowPrecision, layers, each, rounded=rounded[4]) for each in (*fractions, None))
            for bits, each in rounded.items():
                yield partial(LowPrecision, layers, None, bits=bits, high=-1.0, low=1.0, rounded=each)
