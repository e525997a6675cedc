"""Int4 self-draft (MoE-SpeQ, arXiv 2511.14102): the model with coarse experts runs ahead and so names experts to come.

    draft       the same model, its routed experts rounded to int4 in groups of 32; attention, router, shared experts
                and the KV cache of everything decoded so far are the model's own
    j = 1       the draft's routers on the token that the model computes next
    j = 2, …    the draft's routers on the tokens that it writes itself, greedily, one after the other

Channel `self-draft-j` holds, for a token, what the draft that began j - 1 tokens earlier had named for its place.
All of it is known before the token's pass begins. Where the draft wrote another token than the trace goes on with, it
names the experts of the wrong token, as it would at a rejected draft. Prefill is not foreseen.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import DynamicCache

from moesim.errors import InputError
from moesim.record.capture import RouterCapture
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.predictor import BEFORE_ALL_LAYERS
from moesim.record.predictors.rounded_experts import RoundedExperts
from moesim.trace import Availability

if TYPE_CHECKING:
    from moesim.record.recorder import TokenSequence

BITS, GROUP = 4, 32


@dataclass(frozen=True, eq=False)
class SelfDraft:
    """What the draft foresaw; rows are those of the requests, one after the other, as a recording has them."""

    probabilities: list[torch.Tensor]
    """For j = 1, 2, …: [T, L, experts], float32, zero where nothing is foreseen."""
    followed: list[float]
    """For j = 1, 2, …: the share of foreseen tokens before which the draft wrote just what the trace goes on with."""

    def names(self) -> list[str]:
        """The channels' names."""
        return [f"self-draft-{ahead}" for ahead in range(1, 1 + len(self.probabilities))]


def availability(ahead: int, bits: int | None = BITS, group: int = GROUP) -> Availability:
    """Where `self-draft-<ahead>` becomes known."""
    experts = "its own experts" if bits is None else f"int{bits} experts (groups of {group})"
    return Availability(
        layer_offset=0,
        point=BEFORE_ALL_LAYERS,
        description=f"the routers of the model itself with {experts} on the {ahead}. token of its own draft "
        "(MoE-SpeQ, arXiv 2511.14102)",
    )


@torch.no_grad()
def draft(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    requests: "Sequence[TokenSequence]",
    *,
    tokens_ahead: int = 4,
    bits: int | None = BITS,
    group: int = GROUP,
) -> SelfDraft:
    """Draft `tokens_ahead` tokens from every decode token of the requests; `bits` None drafts with the model itself.

    It costs 1 + `tokens_ahead` passes for each decode token. Requests alike in length run side by side.

    Raises:
        InputError: no request, or nothing to draft.
    """
    if not requests or tokens_ahead < 1:
        raise InputError(f"self-draft of {len(requests)} requests, {tokens_ahead} tokens ahead: both are at least 1")
    coarse = None if bits is None else RoundedExperts(layers, bits, group)
    parts: list[torch.Tensor] = []
    followed, foreseen = torch.zeros(tokens_ahead), torch.zeros(tokens_ahead)
    for _, alike in groupby(requests, key=lambda request: (request.prompt_tokens, len(request.tokens))):
        together = list(alike)
        tokens = torch.tensor([list(request.tokens) for request in together], device=next(model.parameters()).device)
        found, agreed, counted = _draft_alike(model, layers, tokens, together[0].prompt_tokens, tokens_ahead, coarse)
        parts.append(found.flatten(1, 2))
        followed, foreseen = followed + agreed, foreseen + counted
    whole = torch.cat(parts, dim=1)
    return SelfDraft(list(whole), (followed / foreseen.clamp(min=1)).tolist())


def _draft_alike(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    tokens: torch.Tensor,
    prompt: int,
    tokens_ahead: int,
    coarse: RoundedExperts | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities [J, sequences, tokens, L, experts]; for each j the drafts that were on the trace's way, and all."""
    sequences, length = tokens.shape
    agreed, counted = torch.zeros(tokens_ahead), torch.zeros(tokens_ahead)
    cache = DynamicCache()
    with RouterCapture(layers) as capture:
        model(input_ids=tokens[:, :prompt], past_key_values=cache, use_cache=True, logits_to_keep=1)
        n_experts = capture.take().logits.shape[-1]
        found = torch.zeros(tokens_ahead, sequences, length, len(layers), n_experts)
        for place in range(prompt, length):
            steps = min(tokens_ahead, length - place)
            given, on_the_way = tokens[:, place], torch.ones(sequences, dtype=torch.bool, device=tokens.device)
            with nullcontext() if coarse is None else coarse.in_place():
                for ahead in range(steps):
                    on_the_way &= given == tokens[:, place + ahead]
                    agreed[ahead] += on_the_way.sum().cpu()
                    counted[ahead] += sequences
                    output = model(input_ids=given[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
                    found[ahead, :, place + ahead] = capture.take().probabilities.transpose(0, 1).cpu()
                    given = output.logits[:, -1].argmax(-1)
            cache.crop(-steps)
            # The model's own pass over the true token, whose keys and values the next draft starts from.
            model(input_ids=tokens[:, place : place + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            capture.take()
    return found, agreed, counted
