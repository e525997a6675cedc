"""The learned estimator (arXiv 2603.19289, §3): one small net that guesses every layer's router.

    h   = W_in q_l + embedding[l+1]                d -> d/m
    h   = h + W_2 silu(W_1 h)                      d/m -> n·d/m -> d/m
    p   = softmax(W_out LayerNorm(h))              d/m -> E

q_l is the query of residual_default_vectors.py. Trained to the true router's distribution by KL divergence; the model
itself stays as it is. The paper leaves m, n and the corpus open: m = 2 and n = 2 unless said otherwise. Known when
router l has run, a few small products later.
"""

from collections.abc import Mapping

import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.predictors.predictor import AFTER_THE_ROUTER, LayerState, Predictor
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.trace import Availability

REDUCTION, EXPANSION = 2, 2


class EstimatorNet(nn.Module):
    """The net. `reduction` is the paper's m, `expansion` its n; a layer is named by its index among the MoE layers."""

    def __init__(
        self, hidden: int, layers: int, experts: int, reduction: int = REDUCTION, expansion: int = EXPANSION
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= hidden or expansion < 1:
            raise InputError(f"estimator: m = {reduction}, n = {expansion}: m is from 1 to {hidden}, n at least 1")
        width = hidden // reduction
        self.enter = nn.Linear(hidden, width)
        self.layer = nn.Embedding(layers, width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, experts)

    def forward(self, query: torch.Tensor, target: int | torch.Tensor) -> torch.Tensor:
        """Logits [N, experts] for MoE layer `target` from queries [N, hidden].

        Several layers at once: queries [T, N, hidden] and targets [T, 1] give [T, N, experts].
        """
        state = self.enter(query) + self.layer.weight[target]
        state = state + self.contract(nn.functional.silu(self.expand(state)))
        logits: torch.Tensor = self.leave(self.norm(state))
        return logits

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], reduction: int, expansion: int) -> "EstimatorNet":
        """The net whose `state_dict` the tensors are."""
        hidden = tensors["enter.weight"].shape[1]
        net = cls(hidden, len(tensors["layer.weight"]), len(tensors["leave.weight"]), reduction, expansion)
        net.load_state_dict(dict(tensors))
        return net.eval()


class Estimator(Predictor):
    """The net's guess of the next layer's router."""

    name = "estimator"
    availability = Availability(
        layer_offset=1,
        point=AFTER_THE_ROUTER,
        description="one small net for all layers on the query of residual+default-vectors, fitted to the true router "
        "by KL divergence (arXiv 2603.19289)",
    )

    def __init__(self, base: ResidualDefaultVectors, net: EstimatorNet) -> None:
        self._base = base
        self._net = net

    @torch.no_grad()
    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        query = self._base.query(target, state).to(self._net.enter.weight.dtype)
        logits: torch.Tensor = self._net(query, target)
        return logits.float().softmax(-1)
