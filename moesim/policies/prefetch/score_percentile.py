"""Prefetch every expert above a percentile of the predicted scores (SpecMD, arXiv 2602.03921).

    at layer l: for layer l + offset, copy the experts whose score is above the 80th percentile of its experts' scores

A percentile of E scores leaves a fixed number of them above it, E - 1 - floor(0.8·(E - 1)) if no two are equal, so the
rule asks for that many ranks: 13 of 64 experts, 26 of 128. A recorded predictor must have ranked as many.
"""

from moesim.errors import ConfigError
from moesim.policies.prefetch.predicted import Predicted
from moesim.policies.registry import register
from moesim.trace import Trace


@register("prefetch", "score-percentile")
class ScorePercentile(Predicted):
    """Ask for the predicted experts above the percentile."""

    def __init__(
        self, predictor: str = "residual+default-vectors", percentile: float = 80.0, prefill: bool = False
    ) -> None:
        if not 0 <= percentile < 100:
            raise ConfigError(f"policy: score-percentile[percentile={percentile:g}]: expected 0 or more, below 100")
        super().__init__(predictor, prefill=prefill)
        self._percentile = percentile

    def check(self, trace: Trace) -> None:
        self.foresight.check(trace, self._above(trace.n_experts))

    def _above(self, experts: int) -> int:
        return max(1, experts - 1 - int(self._percentile * (experts - 1) / 100 + 1e-9))

    def ranks(self, top_k: int) -> int:
        return self._above(self._experts)
