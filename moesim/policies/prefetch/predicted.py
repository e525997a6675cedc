"""Prefetch what a predictor foresees for a coming layer (arXiv 2603.19289 and others).

    at layer l: for layer l + offset, in order of the prediction, copy the first experts of each token that are not
                resident: as many as the model's top-k times `overfetch`, rounded up, or `count` if it is given;
                one prefetch is dropped when no victim is left for it

The offset is the predictor's own: it was recorded with the trace. SpecMD (arXiv 2602.03921) overfetches by 1.5.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.policies.foresight import foresight, wanted_ranks
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody
from moesim.trace import Trace


@register("prefetch", "predicted")
class Predicted(Prefetch):
    """Ask for the predicted experts."""

    def __init__(
        self,
        predictor: str = "residual+default-vectors",
        count: int | None = None,
        overfetch: float = 1.0,
        prefill: bool = False,
    ) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"policy: prefetch[count={count}]: must be at least 1")
        if overfetch <= 0:
            raise ConfigError(f"policy: prefetch[overfetch={overfetch:g}]: must be above 0")
        self.foresight = foresight(predictor)
        self.reads_ahead = self.foresight.reads_ahead
        self.count = count
        self.overfetch = overfetch
        self.prefill = prefill

    def check(self, trace: Trace) -> None:
        self.foresight.check(trace, self.ranks(trace.top_k))

    def prepare(self, layers: int, experts: int) -> None:
        self._experts = experts

    def ranks(self, top_k: int) -> int:
        """How many ranks of each token's prediction are asked for."""
        return self.count or wanted_ranks(top_k, self.overfetch)

    def asks(self, step: Step, layer: int) -> bool:
        ahead = layer + self.foresight.offset(step)
        return ahead < step.layers and (step.phase == DECODE or self.prefill) and self.foresight.foresees(step, ahead)

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        ahead = layer + self.foresight.offset(step)
        base = ahead * self._experts
        return [base + e for e in self.foresight.ranking(step, ahead, self.ranks(step.top_k))]
