"""Look at several layers ahead, as far as the first with something missing (HOBBIT, arXiv 2411.01433).

    at layer l: for layers l + 1 to l + p in turn, take the predicted experts; if some of them are not resident, ask
                for that layer's and look no further

So the link is given one layer's work at a time, the nearest that has any. The paper takes p from 1 to 3. Residents
of the layers looked at are pinned until their layer has run. A recorded predictor must reach p layers ahead; the
synthetic one does, with the same recall at every distance.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.policies.foresight import foresight
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody
from moesim.trace import Trace


@register("prefetch", "multi-layer")
class MultiLayer(Prefetch):
    """Ask for the top-k of the nearest layer ahead that lacks any of it."""

    def __init__(self, predictor: str = "synthetic", layers: int = 3) -> None:
        if layers < 1:
            raise ConfigError(f"policy: multi-layer[layers={layers}]: must be at least 1")
        self._foresight = foresight(predictor)
        self.reads_ahead = self._foresight.reads_ahead
        self._reach = layers

    def check(self, trace: Trace) -> None:
        self._foresight.check(trace, trace.top_k, self._reach)

    def prepare(self, layers: int, experts: int) -> None:
        self._experts = experts

    def asks(self, step: Step, layer: int) -> bool:
        return step.phase == DECODE and layer + 1 < step.layers

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        wanted: list[int] = []
        for ahead in range(layer + 1, min(layer + self._reach, step.layers - 1) + 1):
            if not self._foresight.foresees(step, ahead):
                continue
            base = ahead * self._experts
            named = [base + expert for expert in self._foresight.ranking(step, ahead, step.top_k)]
            wanted += named
            if not all(map(present, named)):
                break
        return wanted
