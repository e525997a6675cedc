"""Leave a missing expert out (a miss rule of SpecMD, arXiv 2602.03921).

    decode:  nothing is fetched on a miss and nothing takes the expert's place
    prefill: missing experts are fetched, since prefill routes truly under every policy

Only prefill and prefetches fill the cache, so without a prefetch it stays as the last prompt left it.
"""

from collections.abc import Sequence

from moesim.events import PREFILL, Step
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "drop")
class Drop(OnMiss):
    """Execute what is resident at classification, and nothing else."""

    lossless = False

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        return missing if step.phase == PREFILL else ()
