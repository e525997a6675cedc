"""Fit the pre-attention nets, one per layer (arXiv 2511.10676).

    arch1   weighted BCE (3.0 / 1.5 / 0.5) + 0.3 × pairwise hinge
    arch2   weighted BCE (3.0 / 0.5)

The BCE has one label per expert: 1 for the k chosen, else 0. Its weights as read here: 3.0 for the chosen experts, 1.5
for the k that the router ranks next, which are the easiest to confuse, 0.5 for all others; arch2 knows no middle. The
hinge is max(0, 1 - (z_i - z_j)), a mean over the pairs of a chosen expert i and another j; the margin of 1 is ours.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.captured_batches import captured_batches
from moesim.record.predictors.pre_attention import WIDTH, pre_attention_net

CHOSEN_WEIGHT, NEXT_WEIGHT, OTHER_WEIGHT = 3.0, 1.5, 0.5
HINGE_SHARE = 0.3
HINGE_MARGIN = 1.0


def fit_pre_attention(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    batches: Sequence[torch.Tensor],
    architecture: str = "arch1",
    *,
    width: int = WIDTH,
    learning_rate: float = 1e-3,
    step_tokens: int = 1024,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[nn.Sequential]:
    """Fit on `batches` of token ids [sequences, tokens], once through; the nets in the order of the layers.

    The nets are trained in float32 on the model's device; the learning rate falls linearly to nothing.

    Raises:
        InputError: an unknown architecture, or a layer without an attention module of its own.
    """
    device = next(model.parameters()).device
    nets: list[nn.Sequential] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        steps = sum(-(-batch.numel() // step_tokens) for batch in batches)
        done = 0
        for captured in captured_batches(model, layers, batches, attention_input=True):
            assert captured.attention_input is not None
            if not nets:
                hidden, experts = captured.attention_input.shape[-1], captured.logits.shape[-1]
                nets = [pre_attention_net(architecture, hidden, experts, width).to(device).train() for _ in layers]
                optimiser = torch.optim.AdamW([p for net in nets for p in net.parameters()], learning_rate)
                rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / (steps + 1))
            order = torch.randperm(captured.experts.shape[1]).to(device)
            # Parts of almost equal length: batch normalisation cannot take a last one of a single token.
            for rows in order.tensor_split(-(-len(order) // step_tokens)):
                optimiser.zero_grad()
                for index, net in enumerate(nets):
                    logits = net(captured.attention_input[index, rows].float())
                    true, chosen = captured.logits[index, rows].float(), captured.experts[index, rows]
                    # The nets share nothing, so the gradient of each is that of its own loss.
                    pre_attention_loss(architecture, logits, true, chosen).backward()
                optimiser.step()
                rate.step()
                done += 1
                progress(done, steps)
    return [net.eval() for net in nets]


def pre_attention_loss(
    architecture: str, logits: torch.Tensor, true_logits: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """The loss at the head of this file; `logits` and `true_logits` are [N, experts], `chosen` [N, top_k] ids."""
    label = torch.zeros_like(logits).scatter_(1, chosen, 1.0)
    weight = torch.where(label > 0, CHOSEN_WEIGHT, OTHER_WEIGHT)
    if architecture == "arch1":
        top_k = chosen.shape[1]
        behind = true_logits.masked_fill(label > 0, -torch.inf)
        following = behind.topk(min(top_k, logits.shape[1] - top_k), dim=1).indices
        weight = weight.scatter(1, following, NEXT_WEIGHT)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, label, weight)
    if architecture == "arch1":
        gap = logits.gather(1, chosen)[:, :, None] - logits[:, None, :]  # [N, top_k, experts]
        others = (1 - label)[:, None, :].expand_as(gap)
        loss = loss + HINGE_SHARE * ((HINGE_MARGIN - gap).clamp(min=0) * others).sum() / others.sum().clamp(min=1)
    return loss
