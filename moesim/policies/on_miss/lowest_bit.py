"""Fetch every missing expert in low precision (a miss rule of SpecMD, arXiv 2602.03921).

    decode:  what is resident in high precision is executed in it; what is missing comes in low precision
    prefill: missing experts are fetched in the model's precision, since prefill routes truly under every policy

So only prefill and prefetches bring the model's own precision.
"""

from collections.abc import Collection, Sequence

from moesim.events import PREFILL, Step
from moesim.policies.precision import low_precision
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "lowest-bit")
class LowestBit(OnMiss):
    """`low`: the precision that misses are fetched in."""

    lossless = False

    def __init__(self, low: str = "int4") -> None:
        self.low = low_precision("lowest-bit", low)

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        return missing

    def at_low_precision(self, step: Step, layer: int, missing: Sequence[int]) -> Collection[int]:
        return () if step.phase == PREFILL else missing
