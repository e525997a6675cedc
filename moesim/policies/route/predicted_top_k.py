"""Execute what was predicted, without asking the router (speculate-and-execute, arXiv 2603.19289).

Where nothing is predicted (layer 0, and prefill unless `prefill=true`) the true ids are executed. In replay the
predictions are those recorded from true states: an open loop, and a column of the result says so.
"""

from collections.abc import Iterable, Sequence

from moesim.events import DECODE, Step
from moesim.policies.prefetch.predicted import check_predictor
from moesim.policies.registry import register
from moesim.policies.roles import Route


@register("route", "predicted-top-k")
class PredictedTopK(Route):
    """Accesses are the first top-k predicted ids of each token."""

    lossless = False

    def __init__(self, predictor: str = "residual+default-vectors", prefill: bool = False) -> None:
        self.predictor = predictor
        self.prefill = prefill

    def check(self, predictors: Iterable[str]) -> None:
        check_predictor(self.predictor, predictors)

    def _speculates(self, step: Step, layer: int) -> bool:
        return (step.phase == DECODE or self.prefill) and bool(step.predicted(self.predictor, layer))

    def reads_router(self, step: Step, layer: int) -> bool:
        return not self._speculates(step, layer)

    def accesses(self, step: Step, layer: int) -> Sequence[int]:
        if self._speculates(step, layer):
            return step.predicted(self.predictor, layer)
        return step.accesses[layer]
