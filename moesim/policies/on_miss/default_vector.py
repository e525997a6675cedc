"""Let the expert's mean output stand in for it (resident-execute, arXiv 2603.19289).

    decode:  nothing is fetched on a miss; the default vector d_{l,e} is added instead
    prefill: missing experts are fetched, since prefill routes truly under every policy

Nothing predicts layer 0, so it is loaded on demand, as it is when this paper's engine speculates; with
`layer0=default-vector` it executes what is resident like every other layer.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import PREFILL, Step
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "default-vector")
class DefaultVector(OnMiss):
    """Execute what is resident at classification; a default vector is the rest."""

    lossless = False

    def __init__(self, layer0: str = "fetch") -> None:
        if layer0 not in ("default-vector", "fetch"):
            raise ConfigError(f"policy: resident-execute[layer0={layer0}]: known: default-vector, fetch")
        self.layer0 = layer0

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        return missing if step.phase == PREFILL or (layer == 0 and self.layer0 == "fetch") else ()
