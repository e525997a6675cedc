"""Look several layers ahead, each expert in the precision that its predicted weight earns (HOBBIT, arXiv 2411.01433).

    as `multi-layer`, but of the experts predicted for a layer, by the predicted weight s_i before the i-th:
        s_i of at most 0.6: ask for the model's precision; at most 0.9: for low precision; else for nothing
    a resident in the model's precision serves every need

The predictor must foresee weights: a recorded one with scores does (renormalised over the top-k); the synthetic one
gives the i-th rank the weight that the router gives its i-th choice.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import Step
from moesim.policies.precision import weight_before
from moesim.policies.prefetch.multi_layer import MultiLayer
from moesim.policies.registry import register
from moesim.policies.roles import Present, nobody
from moesim.trace import Trace


@register("prefetch", "multi-layer-cascade")
class MultiLayerCascade(MultiLayer):
    """`high` and `skip` as in the miss rule `precision-cascade`."""

    names_low = True

    def __init__(
        self, predictor: str = "synthetic", layers: int = 3, high: float = 0.6, skip: float = 0.9
    ) -> None:
        super().__init__(predictor, layers)
        if not 0 <= high <= skip <= 1:
            raise ConfigError(
                f"policy: multi-layer-cascade[high={high:g},skip={skip:g}]: expected 0 <= high <= skip <= 1"
            )
        self._high, self._skip = high, skip

    def check(self, trace: Trace) -> None:
        super().check(trace)
        self._foresight.check_weights(trace)

    def prepare(self, layers: int, experts: int) -> None:
        super().prepare(layers, experts)
        self._first_low = layers * experts

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        wanted: list[int] = []
        for ahead in range(layer + 1, min(layer + self._reach, step.layers - 1) + 1):
            if not self._foresight.foresees(step, ahead):
                continue
            base, named = ahead * self._experts, []
            for expert, before in weight_before(self._foresight.gates(step, ahead, step.top_k)).items():
                if before <= self._high or present(base + expert):
                    named.append(base + expert)
                elif before <= self._skip:
                    named.append(self._first_low + base + expert)
            wanted += named
            if not all(map(present, named)):
                break
        return wanted
