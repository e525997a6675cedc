"""Skip missing experts of little weight (HOBBIT's cascade, arXiv 2411.01433, without its low precision).

    a token's experts, residents included, are sorted by gate weight, scaled to sum to 1; s_i is the weight before
    the i-th
    fetch a missing expert with s_i of at most 0.9, skip the others
    prefill: all are fetched, since prefill routes truly under every policy

HOBBIT fetches between 0.6 and 0.9 in int4 (see `precision-cascade`); here those are fetched whole. An expert that
several tokens need is fetched if one of them needs it that much. The heaviest expert, with s = 0, is always fetched.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import PREFILL, Step
from moesim.policies.precision import weight_before
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "skip-light")
class SkipLight(OnMiss):
    """Fetch what the heavier experts leave enough weight to."""

    lossless = False

    def __init__(self, skip: float = 0.9) -> None:
        if not 0 <= skip <= 1:
            raise ConfigError(f"policy: skip-light[skip={skip:g}]: expected a share from 0 to 1")
        self._skip = skip

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        if step.phase == PREFILL:
            return missing
        before = weight_before(step.gates(layer))
        # One that the router did not choose, and a re-routing or predicting rule accesses, has nothing to weigh.
        return [expert for expert in missing if before.get(expert, 0.0) <= self._skip]
