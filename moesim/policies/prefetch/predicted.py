"""Prefetch what a recorded predictor foresaw for a coming layer (arXiv 2603.19289 and others).

    at layer l: for layer l + offset, in order of the prediction, copy the first `count` experts of each token
                that are not resident; one prefetch is dropped when no victim is left for it

The offset is the predictor's own: it was recorded with the trace.
"""

from collections.abc import Iterable, Sequence

from moesim.errors import ConfigError, nearest
from moesim.events import DECODE, Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch


def check_predictor(predictor: str, predictors: Iterable[str]) -> None:
    """Raise ConfigError unless the trace carries the predictor's channel."""
    known = list(predictors)
    if predictor not in known:
        hint = nearest(predictor, known) if known else "the trace carries no predictions"
        raise ConfigError(f"policy: predictor {predictor!r} is not in the trace: {hint}")


@register("prefetch", "predicted")
class Predicted(Prefetch):
    """Ask for the predicted experts; `count` per token, by default the model's top-k."""

    def __init__(
        self, predictor: str = "residual+default-vectors", count: int | None = None, prefill: bool = False
    ) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"policy: prefetch[count={count}]: must be at least 1")
        self.predictor = predictor
        self.count = count
        self.prefill = prefill

    def check(self, predictors: Iterable[str]) -> None:
        check_predictor(self.predictor, predictors)

    def predicts(self, step: Step, layer: int) -> bool:
        return (step.phase == DECODE or self.prefill) and bool(step.predicted(self.predictor, layer))

    def horizon(self, step: Step, layer: int) -> Iterable[int]:
        ahead = layer + step.layer_offset(self.predictor)
        return (ahead,) if ahead < step.layers and self.predicts(step, ahead) else ()

    def wanted(self, step: Step, layer: int) -> Sequence[int]:
        return step.predicted(self.predictor, layer, self.count)
