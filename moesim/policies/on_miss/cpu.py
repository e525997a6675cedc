"""Execute missing experts where their weights are: on the CPU (KTransformers, SOSP 2025; llama.cpp `--cpu-moe`).

    every missing expert runs on the CPU; nothing is fetched, so residents are those of the start
    deferred = d: of each token's experts the d lightest may come a layer late: the next layer's attention does not wait
        for them, and their results are added behind that layer's experts. One that any token of the batch holds among
        its heavier ones is not deferred, nor is anything of the last layer, nor in a prefill.

Deferral changes what attention sees, so it is lossy; without it the outputs are those of the model.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import PREFILL, Step
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "cpu")
class Cpu(OnMiss):
    """All missing experts on the CPU."""

    fetches = False
    uses_cpu = True

    def __init__(self, deferred: int = 0) -> None:
        if deferred < 0:
            raise ConfigError(f"policy: cpu[deferred={deferred}]: expected a number of experts, 0 or more")
        self._deferred = deferred
        self.lossless = deferred == 0

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        return ()

    def on_cpu(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        return missing

    def deferred(self, step: Step, layer: int, on_cpu: Sequence[int]) -> Sequence[int]:
        if not self._deferred or step.phase == PREFILL or layer == step.layers - 1:
            return ()
        protected = {
            expert for token in step.gates(layer) for expert, _ in token[: max(0, step.top_k - self._deferred)]
        }
        return [expert for expert in on_cpu if expert not in protected]
