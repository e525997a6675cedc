"""The hybrid (arXiv 2603.19289, §3): the estimator where it is better, the router's own guess everywhere else.

    p_l = estimator on the layers of a set, residual+default-vectors on all others

The paper says "low-hit layers" and leaves the set open. Here it is the layers on which the estimator had the higher
recall at k on a validation text, which neither was fitted on; the set is kept with the estimator. Known when the router
of the layer before has run.
"""

from collections.abc import Collection

import torch

from moesim.record.predictors.estimator import Estimator
from moesim.record.predictors.predictor import AFTER_THE_ROUTER, LayerState, Predictor
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.trace import Availability


class Hybrid(Predictor):
    """The estimator on the MoE layers with the indices `estimated`, residual and default vectors on the others."""

    name = "hybrid"

    def __init__(self, base: ResidualDefaultVectors, estimator: Estimator, estimated: Collection[int]) -> None:
        self._base, self._estimator, self._estimated = base, estimator, frozenset(estimated)
        numbers = ", ".join(map(str, sorted(self._estimated))) or "none"
        self.availability = Availability(
            layer_offset=1,
            point=AFTER_THE_ROUTER,
            description=f"the estimator on MoE layers {numbers} (by index, where it won on a validation text), "
            "residual+default-vectors on the others (arXiv 2603.19289)",
        )

    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        chosen = self._estimator if target in self._estimated else self._base
        return chosen.probabilities(target, state)
