"""Execute what was predicted, without asking the router (speculate-and-execute, arXiv 2603.19289).

Where nothing is predicted (layer 0, and prefill unless `prefill=true`) the true ids are executed. In replay the
predictions are those recorded from true states: an open loop, and a column of the result says so.
"""

from collections.abc import Sequence

from moesim.events import DECODE, Step
from moesim.policies.foresight import foresight
from moesim.policies.registry import register
from moesim.policies.roles import Present, Route, nobody
from moesim.trace import Trace


@register("route", "predicted-top-k")
class PredictedTopK(Route):
    """Accesses are the first top-k predicted ids of each token."""

    lossless = False

    def __init__(self, predictor: str = "residual+default-vectors", prefill: bool = False) -> None:
        self.foresight = foresight(predictor)
        self.reads_ahead = self.foresight.reads_ahead
        self.prefill = prefill

    def check(self, trace: Trace) -> None:
        self.foresight.check(trace, trace.top_k)

    def _speculates(self, step: Step, layer: int) -> bool:
        return (step.phase == DECODE or self.prefill) and self.foresight.foresees(step, layer)

    def reads_router(self, step: Step, layer: int) -> bool:
        return not self._speculates(step, layer)

    def accesses(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        if self._speculates(step, layer):
            return self.foresight.ranking(step, layer, step.top_k)
        return step.accesses[layer]
