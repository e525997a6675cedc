"""Which modes a run measures: those asked for by name, with every predictor, first layer and cache size asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from moesim.errors import InputError, nearest
from moesim.quality.foresight import Foresight
from moesim.quality.modes.cache_prior import CachePrior
from moesim.quality.modes.drop import Drop
from moesim.quality.modes.low_precision import LowPrecision
from moesim.quality.modes.mode import Mode
from moesim.quality.modes.open_loop import OpenLoop
from moesim.quality.modes.resident_execute import ResidentExecute
from moesim.quality.modes.speculate_and_execute import SpeculateAndExecute
from moesim.quality.modes.substitute import Substitute
from moesim.quality.modes.true_routing import TrueRouting
from moesim.record.moe_layers import MoeLayer

SPECULATE, OPEN_LOOP, RESIDENT_EXECUTE = "speculate-and-execute", "open-loop", "resident-execute"
DROP, SUBSTITUTE, CACHE_PRIOR, LOW_PRECISION = "drop", "substitute", "cache-prior", "low-precision"
MODES: Final = (SPECULATE, OPEN_LOOP, RESIDENT_EXECUTE, DROP, SUBSTITUTE, CACHE_PRIOR, LOW_PRECISION)
STRENGTHS: Final = (0.2, 0.5, 0.8)
"""The paper's λ: quality is said to fall past 0.8."""
_EVERY_EXPERT: Final = {"high": -1.0, "low": 1.0}


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    `foresights` are the predictors, each used by both kinds of speculation. The last of them feeds what has a cache and
    the layers from `first_layers` on. `vectors` are the default vectors [L, experts, hidden], if there are any.
    """

    names: Sequence[str]
    foresights: Sequence[Foresight]
    first_layers: Sequence[int]
    cache_fractions: Sequence[float]
    vectors: torch.Tensor | None

    def modes(self, layers: Sequence[MoeLayer]) -> list[Mode]:
        """The modes, true routing first: once in whole passes, and once stepped if any mode is.

        Raises:
            InputError: an unknown mode; one that lacks its default vectors, its predictor or its layers.
        """
        for name in self.names:
            if name not in MODES:
                raise InputError(f"mode {name!r} is unknown: {nearest(name, MODES)}")
        asked = [mode for name in MODES if name in self.names for mode in self._of(name, layers)]
        stepped = [TrueRouting(stepped=True)] if any(mode.stepped for mode in asked) else []
        return [TrueRouting(), *stepped, *asked]

    def _of(self, name: str, layers: Sequence[MoeLayer]) -> Iterator[Mode]:
        feeding = self.foresights[-1]
        if name == SPECULATE:
            yield from (SpeculateAndExecute(layers, each) for each in self.foresights)
            yield from (SpeculateAndExecute(layers, feeding, first) for first in self.first_layers)
        elif name == OPEN_LOOP:
            yield from (OpenLoop(layers, each) for each in self.foresights)
        elif name == RESIDENT_EXECUTE:
            if self.vectors is None:
                raise InputError(f"mode {name!r} needs what `moesim fit default-vectors` writes: --fitted FILE")
            for fraction in self.cache_fractions:
                yield ResidentExecute(layers, feeding, fraction, self.vectors)
        elif name == DROP:
            for fraction in self.cache_fractions:
                yield from (Drop(layers, feeding, fraction, renormalise=each) for each in (False, True))
        elif name == SUBSTITUTE:
            yield from (Substitute(layers, feeding, fraction) for fraction in self.cache_fractions)
            yield from (Substitute(layers, feeding, fraction, "own") for fraction in self.cache_fractions)
        elif name == CACHE_PRIOR:
            keep = min(2, layers[0].layout.top_k)
            for strength in STRENGTHS:
                yield from (CachePrior(layers, fraction, strength, keep) for fraction in self.cache_fractions)
        else:
            yield from (LowPrecision(layers, fraction) for fraction in self.cache_fractions)
            yield LowPrecision(layers, None)
            yield from (LowPrecision(layers, None, bits=bits, **_EVERY_EXPERT) for bits in (8, 4))
