"""Fetch a missing expert in the precision that its gate weight earns (HOBBIT, arXiv 2411.01433).

    a token's experts, residents included, are sorted by gate weight, scaled to sum to 1; s_i is the weight before
    the i-th
    of a missing expert: s_i of at most 0.6: fetch it in the model's precision; at most 0.9: in low precision; else
    skip it
    prefill: all are fetched in the model's precision, since prefill routes truly under every policy

An expert that several tokens need has the smallest s_i of theirs. The heaviest expert, with s = 0, always comes in the
model's precision. `skip=1.0` never skips.
"""

from collections.abc import Collection, Sequence

from moesim.errors import ConfigError
from moesim.events import PREFILL, Step
from moesim.policies.precision import low_precision, weight_before
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "precision-cascade")
class PrecisionCascade(OnMiss):
    """High precision up to `high` of the weight before an expert, low up to `skip`, nothing behind it."""

    lossless = False

    def __init__(self, high: float = 0.6, skip: float = 0.9, low: str = "int4") -> None:
        if not 0 <= high <= skip <= 1:
            raise ConfigError(
                f"policy: precision-cascade[high={high:g},skip={skip:g}]: expected 0 <= high <= skip <= 1"
            )
        self._high, self._skip = high, skip
        self.low = low_precision("precision-cascade", low)

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        if step.phase == PREFILL:
            return missing
        before = weight_before(step.gates(layer))
        # One that the router did not choose, and a re-routing or predicting rule accesses, has nothing to weigh.
        return [expert for expert in missing if before.get(expert, 0.0) <= self._skip]

    def at_low_precision(self, step: Step, layer: int, missing: Sequence[int]) -> Collection[int]:
        if step.phase == PREFILL:
            return ()
        before = weight_before(step.gates(layer))
        return {expert for expert in missing if before.get(expert, 0.0) > self._high}
