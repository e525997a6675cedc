"""Fit the learned estimator: KL divergence to the true routers, the model itself frozen (arXiv 2603.19289, §3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moesim.record.capture import Captured
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.captured_batches import captured_batches
from moesim.record.predictors.estimator import EXPANSION, REDUCTION, Estimator, EstimatorNet
from moesim.record.predictors.predictor import Predictor, foresee, layer_state
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EstimatorSettings:
    """What the paper leaves open; the learning rate falls linearly to nothing."""

    reduction: int = REDUCTION
    """m: the net is hidden / m wide."""
    expansion: int = EXPANSION
    """n: its inner layer is n times as wide."""
    learning_rate: float = 1e-3
    step_tokens: int = 1024
    """Tokens of one optimiser step, each with all of its layers."""


@dataclass(frozen=True, eq=False)
class FittedEstimator:
    """The net, and recall at k by layer on the validation text; NaN for the first layer, which nothing foresees."""

    net: EstimatorNet
    recall: list[float]
    base_recall: list[float]
    """The same of residual+default-vectors."""

    @property
    def wins(self) -> list[int]:
        """Indices of the layers on which the estimator had the higher recall: those that `hybrid` gives it."""
        pairs = zip(self.recall, self.base_recall, strict=True)
        return [layer for layer, (own, base) in enumerate(pairs) if own > base]


def fit_estimator(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    batches: Sequence[torch.Tensor],
    validation: Sequence[torch.Tensor],
    vectors: torch.Tensor,
    settings: EstimatorSettings = EstimatorSettings(),
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> FittedEstimator:
    """Fit on `batches` of token ids [sequences, tokens], once through, and compare on `validation`.

    The net is trained in float32 on the model's device. `vectors` are the default vectors [L, experts, hidden].
    """
    device = next(model.parameters()).device
    base = ResidualDefaultVectors(layers, vectors.to(device))
    n_experts, hidden = vectors.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = EstimatorNet(hidden, len(layers), n_experts, settings.reduction, settings.expansion).to(device)
        steps = sum(-(-batch.numel() // settings.step_tokens) for batch in batches)
        optimiser = torch.optim.AdamW(net.parameters(), settings.learning_rate)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / (steps + 1))
        done = 0
        for captured in captured_batches(model, layers, batches):
            queries, truth = _examples(base, captured)
            for rows in torch.randperm(queries.shape[1]).to(device).split(settings.step_tokens):
                optimiser.zero_grad()
                _divergence(net, queries[:, rows], truth[:, rows]).backward()
                optimiser.step()
                rate.step()
                done += 1
                progress(done, steps)
    net.eval()
    recall = _recall(model, layers, validation, [Estimator(base, net), base])
    return FittedEstimator(net, recall[0], recall[1])


def _examples(base: ResidualDefaultVectors, captured: Captured) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [L-1, N, hidden] and the true probabilities [L-1, N, experts] of all layers but the first."""
    targets = range(1, len(captured.logits))
    with torch.no_grad():
        queries = [base.query(target, layer_state(captured, target - 1)).float() for target in targets]
    # Scores that are no distribution, such as a sigmoid's, are made one: a divergence is between distributions.
    scores = captured.probabilities[1:]
    return torch.stack(queries), scores / scores.sum(-1, keepdim=True)


def _divergence(net: EstimatorNet, queries: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean KL(true router || net) over tokens and layers."""
    targets = torch.arange(1, 1 + len(queries), device=queries.device)
    logits = net(queries, targets[:, None])
    divergence = nn.functional.kl_div(logits.log_softmax(-1), truth, reduction="none")
    return divergence.sum(-1).mean()


def _recall(
    model: nn.Module, layers: Sequence[MoeLayer], batches: Sequence[torch.Tensor], predictors: Sequence[Predictor]
) -> list[list[float]]:
    """Recall at k of each predictor in each layer."""
    hits = torch.zeros(len(predictors), len(layers), dtype=torch.float64)
    chosen = 0
    for captured in captured_batches(model, layers, batches):
        top_k = captured.experts.shape[-1]
        chosen += captured.experts[0].numel()
        for number, predictor in enumerate(predictors):
            named = foresee(predictor, captured).topk(top_k, dim=-1).indices
            found = (captured.experts[..., :, None] == named[..., None, :]).any(-1)
            hits[number] += found.sum((1, 2)).cpu()
    hits[:, 0] = torch.nan
    recall: list[list[float]] = (hits / max(1, chosen)).tolist()
    return recall
