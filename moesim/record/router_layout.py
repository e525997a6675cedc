"""What a router returns, whatever its class: which of its outputs are the chosen ids, the gate weights, the logits.

transformers' routers agree in substance and differ in order: most return (logits, weights, ids), Granite's
(ids, weights, logits), Switch's (probability, one-hot choice, probability) without logits. So a router is read by
looking at one output of it, not at its name:

    ids      the only integer tensor: [N, K] ids, or [N, K, E] one-hot rows (all zero where a token was dropped)
    weights  the floating tensor with K columns
    logits   the floating tensor that is left, E columns; where there is none, what its `classifier` makes of the input

Which function turns logits into scores is seen the same way: the gate weights of a token are proportional to the
scores of its experts (softmax in most models, sigmoid in DeepSeek-V3 and GLM-4-MoE).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from moesim.errors import InputError

ScoreFunction = Literal["softmax", "sigmoid", "identity"]
_SCORES: dict[ScoreFunction, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "identity": lambda scores: scores,
}
# Gate weights computed in bfloat16 are exact to 1/256; softmax and sigmoid differ by far more on spread logits.
_PROPORTIONAL = 0.03


@dataclass(frozen=True)
class RouterLayout:
    """Where in a router's output tuple its ids, weights and logits stand.

    `logits` is None where the router returns none and `classifier` computes them. `score_function` turns logits into
    the scores that the router compares.
    """

    ids: int
    weights: int
    logits: int | None
    one_hot: bool
    n_experts: int
    top_k: int
    score_function: ScoreFunction

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """[..., E] float32: the router's score of every expert, between 0 and 1."""
        return _SCORES[self.score_function](logits.float())

    def logits_of(self, router: nn.Module, hidden: torch.Tensor, output: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The logits [N, E] of a forward pass of `router` over `hidden` that returned `output`."""
        found = _classified(router, hidden) if self.logits is None else output[self.logits]
        return found.detach().flatten(0, -2)

    def choice(self, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [N, K], -1 where a token was dropped, and gate weights [N, K], 0 there; in the router's own order."""
        ids, weights = output[self.ids].detach(), output[self.weights].detach()
        if not self.one_hot:
            return ids.flatten(0, -2), weights.flatten(0, -2)
        chosen = ids.flatten(0, -3)
        kept = chosen.any(-1)
        return chosen.argmax(-1).masked_fill(~kept, -1), weights.flatten(0, -2) * kept


def read_layout(router: nn.Module, hidden: torch.Tensor) -> RouterLayout:
    """Look at what `router` returns for random inputs of the shape of `hidden`.

    Raises:
        InputError: it returns something in which ids, weights and logits cannot be told apart.
    """
    generator = torch.Generator().manual_seed(0)
    given = torch.randn((*hidden.shape[:-2], 64, hidden.shape[-1]), generator=generator).to(hidden)
    output = router(given)
    layout = _placed(router, given, output)
    spread = layout.logits_of(router, given, output).float().std().clamp(min=1e-6)
    # Logits that lie apart: untrained weights give almost equal ones, and every function looks like every other.
    given = given * (1.5 / spread).to(given)
    return _with_score_function(layout, router, given)


def _placed(router: nn.Module, hidden: torch.Tensor, output: Any) -> RouterLayout:
    tensors = output if isinstance(output, tuple) else (output,)
    unknown = InputError(
        f"router {type(router).__name__} is of unknown kind: it returns "
        f"{', '.join(_described(each) for each in tensors)}, not chosen ids beside their weights"
    )
    if not all(isinstance(each, torch.Tensor) for each in tensors):
        raise unknown
    whole = [at for at, each in enumerate(tensors) if not each.is_floating_point()]
    real = [at for at, each in enumerate(tensors) if each.is_floating_point()]
    if len(whole) != 1:
        raise unknown
    ids = tensors[whole[0]]
    one_hot = ids.dim() == hidden.dim() + 1
    top_k = ids.shape[-2] if one_hot else ids.shape[-1]
    weights = [at for at in real if tensors[at].shape[-1] == top_k]
    wider = [at for at in real if tensors[at].shape[-1] > top_k]
    if len(weights) == 2 and not wider and not one_hot:  # every expert is chosen: logits come first, or last
        wider, weights = ([weights[0]], [weights[1]]) if whole[0] else ([weights[1]], [weights[0]])
    if not weights or len(wider) > 1 or (not wider and not isinstance(getattr(router, "classifier", None), nn.Module)):
        raise unknown
    n_experts = tensors[wider[0]].shape[-1] if wider else _classified(router, hidden).shape[-1]
    return RouterLayout(
        ids=whole[0], weights=weights[0], logits=wider[0] if wider else None, one_hot=one_hot,
        n_experts=n_experts, top_k=top_k, score_function="softmax",
    )


def _with_score_function(layout: RouterLayout, router: nn.Module, given: torch.Tensor) -> RouterLayout:
    output = router(given)
    logits = layout.logits_of(router, given, output).float()
    ids, weights = layout.choice(output)
    best, spread = layout, _PROPORTIONAL
    if layout.top_k == 1:
        return layout  # one weight is proportional to anything; softmax is what top-1 routers use
    for name in _SCORES:
        candidate = RouterLayout(**{**layout.__dict__, "score_function": name})
        ratio = weights.float() / candidate.scores(logits).gather(-1, ids)
        relative = (ratio.amax(-1) - ratio.amin(-1)) / ratio.abs().amax(-1).clamp(min=1e-9)
        if relative.median().item() < spread:
            best, spread = candidate, relative.median().item()
    return best


def _classified(router: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    classifier: Any = router.classifier
    logits: torch.Tensor = classifier(hidden.to(classifier.weight.dtype))
    return logits


def _described(each: Any) -> str:
    if isinstance(each, torch.Tensor):
        return f"{str(each.dtype).removeprefix('torch.')}{list(each.shape)}"
    return type(each).__name__
