"""What a layer's own router would choose if its logits were others.

Routers differ in what they do with logits (softmax or sigmoid, groups, correction biases, renormalisation, sparse
mixing), so none of it is repeated here: the router itself runs, with its matrix replaced by the identity and the
logits as its input.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer

_ALIKE = 1e-3
_TRIALS = 64


def choose(layer: MoeLayer, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids [N, top_k] and gate weights [N, top_k] that the layer's router makes of `logits` [N, experts].

    Exact: a product with the identity leaves every logit as it is. Computed in float32.

    Raises:
        InputError: the router has no matrix of its own, or more experts than inputs.
    """
    router, experts = layer.router, logits.shape[-1]
    replaced: dict[str, torch.Tensor] = {}
    inputs = 0
    for name, parameter in router.named_parameters():
        if parameter.dim() == 2 and parameter.shape[0] == experts:
            inputs = parameter.shape[1]
            replaced[name] = torch.eye(experts, inputs, dtype=torch.float32, device=logits.device)
        elif parameter.shape == (experts,):
            replaced[name] = torch.zeros(experts, dtype=torch.float32, device=logits.device)
    if inputs < experts:
        raise InputError(
            f"router {type(router).__name__} of {experts} experts over {inputs} inputs cannot be given logits: "
            "it needs one matrix with at least as many inputs as experts"
        )
    padded = nn.functional.pad(logits.float(), (0, inputs - experts))
    output = functional_call(router, replaced, (padded,))
    return layer.layout.choice(output)


@dataclass(frozen=True)
class _WeightRule:
    """Gate weights from scores: `factor` times the score, divided by the sum over the chosen if `renormalised`."""

    renormalised: bool
    factor: float


_rules: "weakref.WeakKeyDictionary[nn.Module, _WeightRule]" = weakref.WeakKeyDictionary()


def gate_weights(layer: MoeLayer, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Gate weights [N, K], float32, of experts `chosen` [N, K] by the layer's own rule, on its logits [N, experts].

    Which rule that is (renormalised or not, and by what factor) is seen from the router's own weights.

    Raises:
        InputError: its gate weights are not proportional to the scores of the chosen.
    """
    rule = _rule(layer, logits.device)
    scores = layer.layout.scores(logits).gather(-1, chosen)
    if rule.renormalised:
        scores = scores / scores.sum(-1, keepdim=True)
    return rule.factor * scores


def check_gate_weights(layers: Sequence[MoeLayer]) -> None:
    """Refuse routers that `gate_weights` cannot serve, before anything runs.

    Raises:
        InputError: gate weights are not proportional to the scores of the chosen.
    """
    for layer in layers:
        _rule(layer, next(layer.router.parameters()).device)


def _rule(layer: MoeLayer, device: torch.device) -> _WeightRule:
    rule = _rules.get(layer.router)
    if rule is None:
        rule = _rules[layer.router] = _seen_rule(layer, device)
    return rule


def _seen_rule(layer: MoeLayer, device: torch.device) -> _WeightRule:
    logits = torch.randn(_TRIALS, layer.layout.n_experts, generator=torch.Generator().manual_seed(0)).to(device)
    chosen, weights = choose(layer, logits)
    total = weights.float().sum(-1)
    if (total.amax() - total.amin()) < _ALIKE * total.amax():
        rule = _WeightRule(renormalised=True, factor=total.mean().item())
    else:
        ratio = weights.float() / layer.layout.scores(logits).gather(-1, chosen)
        rule = _WeightRule(renormalised=False, factor=ratio.mean().item())
    scores = layer.layout.scores(logits).gather(-1, chosen)
    expected = rule.factor * (scores / scores.sum(-1, keepdim=True) if rule.renormalised else scores)
    if not torch.allclose(expected, weights.float(), rtol=10 * _ALIKE, atol=_ALIKE):
        raise InputError(
            f"router {type(layer.router).__name__}: its gate weights do not follow from its scores, "
            "so those of other experts are unknown"
        )
    return rule
