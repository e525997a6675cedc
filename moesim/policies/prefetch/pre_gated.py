"""Pre-gated MoE (arXiv 2308.12066): layer l's gate names the experts of layer l + 1, exactly.

    at layer l: copy the experts of layer l + 1 that are not resident

The model is trained so that this *is* its routing; the trace's routing stands for that model's. The first layer has
no gate before it and is loaded on demand. For a model that was not trained this way it is a bound on what any
prediction one layer ahead can do.
"""

from collections.abc import Sequence

from moesim.events import DECODE, Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody


@register("prefetch", "pre-gated")
class PreGated(Prefetch):
    """Ask for the next layer's true experts."""

    reads_ahead = True

    def prepare(self, layers: int, experts: int) -> None:
        self._experts = experts

    def asks(self, step: Step, layer: int) -> bool:
        return step.phase == DECODE and layer + 1 < step.layers

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        base = (layer + 1) * self._experts
        return [base + expert for expert in step.accesses[layer + 1]]
