"""Perplexity, divergence and agreement of modes beside the true model, on the same tokens.

A block begins with a prompt, which routes truly under every mode; what follows is decoded teacher-forced: each token is
given, and the distribution of the next is compared. Blocks are spread over lanes, consecutive blocks on one lane, and
the lanes run side by side, each with its own cache where a mode has one.

The true model, its routers untouched, runs twice at most: in one forward pass per block, and token by token for the
modes that need that, so that a mode is always compared with the same arithmetic.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.quality.modes.mode import Mode
from moesim.quality.replaced_routing import ReplacedRouting
from moesim.record.capture import RouterCapture
from moesim.record.moe_layers import MoeLayer, evaluating

NLL, TRUE_NLL, DIVERGENCE, AGREEMENT, TOKENS = range(5)
"""Columns of a mode's sums."""


@dataclass(frozen=True)
class Layout:
    """How blocks [blocks, tokens] are run. Every mode counts the same tokens."""

    prompt_tokens: int
    warmup_tokens: int
    lanes: int


@torch.inference_mode()
def measure(
    model: Any,
    layers: Sequence[MoeLayer],
    modes: Sequence[Mode],
    blocks: NDArray[np.int64],
    layout: Layout,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[NDArray[np.float64]]:
    """Run every mode over all blocks; for each, what it adds up to block by block: [blocks, 5].

    The columns are in nats, nats, nats, tokens and tokens.
    """
    device = next(model.parameters()).device
    count, length = blocks.shape
    lanes = min(layout.lanes, count)
    rounds = -(-count // lanes)
    # Consecutive blocks on one lane; a lane that runs out repeats its last block, and that is not counted.
    order = np.minimum(np.arange(lanes)[:, None] * rounds + np.arange(rounds), count - 1)
    fresh = np.arange(lanes)[:, None] * rounds + np.arange(rounds) < count
    sums = [np.zeros((count, 5)) for _ in modes]
    for mode in modes:
        mode.begin(lanes)
    with evaluating(model):
        for turn in range(rounds):
            tokens = torch.from_numpy(blocks[order[:, turn]]).to(device)
            counted = torch.zeros(lanes, length - 1 - layout.prompt_tokens, dtype=torch.bool)
            counted[torch.from_numpy(fresh[:, turn])] = True
            decoded = torch.arange(counted.shape[1]) + turn * counted.shape[1]
            counted &= decoded >= layout.warmup_tokens
            truths: dict[bool, torch.Tensor] = {}
            for number, mode in enumerate(modes):
                if mode.stepped not in truths or mode.reads_true_states:
                    truths[mode.stepped] = _true_run(model, layers, mode, tokens, layout.prompt_tokens)
                logits = run(model, layers, mode, tokens, layout.prompt_tokens)
                found = _compared(logits, truths[mode.stepped], tokens[:, layout.prompt_tokens + 1 :], counted)
                for lane in np.flatnonzero(fresh[:, turn]):
                    sums[number][order[lane, turn]] = found[lane]
                progress(turn * len(modes) + number + 1, rounds * len(modes))
    return sums


def run(
    model: Any,
    layers: Sequence[MoeLayer],
    mode: Mode | None,
    tokens: torch.Tensor,
    prompt_tokens: int,
    *,
    stepped: bool | None = None,
) -> torch.Tensor:
    """Logits [lanes, T - 1 - prompt_tokens, vocabulary] after each decoded token of `tokens` [lanes, T] but the last.

    `mode` None is the plain model without hooks. `stepped` decodes token by token a mode that does not ask for it.
    """
    stepped = (mode is not None and mode.stepped) if stepped is None else stepped
    lanes, length = tokens.shape
    routing = nullcontext() if mode is None else ReplacedRouting(layers, mode)
    with routing as replaced:
        if not stepped:
            if replaced is not None:
                replaced.decoding = (torch.arange(length, device=tokens.device) >= prompt_tokens).repeat(lanes)
            whole: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
            return whole[:, prompt_tokens:-1]
        output = model(input_ids=tokens[:, :prompt_tokens], use_cache=True)
        if replaced is not None:
            replaced.decoding = torch.ones(lanes, dtype=torch.bool, device=tokens.device)
        parts = []
        for at in range(prompt_tokens, length - 1):
            output = model(input_ids=tokens[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
            parts.append(output.logits)
        return torch.cat(parts, dim=1)


def _true_run(
    model: Any, layers: Sequence[MoeLayer], mode: Mode, tokens: torch.Tensor, prompt_tokens: int
) -> torch.Tensor:
    """The plain model over the same tokens; a mode that reads true states is shown them."""
    if not mode.reads_true_states:
        return run(model, layers, None, tokens, prompt_tokens, stepped=mode.stepped)
    with RouterCapture(layers) as capture:
        logits = run(model, layers, None, tokens, prompt_tokens, stepped=False)
        mode.see(capture.take())
    return logits


def _compared(
    logits: torch.Tensor, true_logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor
) -> NDArray[np.float64]:
    """[lanes, 5]: sums over the counted tokens of each lane. One lane at a time: a vocabulary is wide."""
    found = np.zeros((len(logits), 5))
    for lane in range(len(logits)):
        here = counted[lane].to(logits.device)
        likely = logits[lane, here].double().log_softmax(-1)
        true_likely = true_logits[lane, here].double().log_softmax(-1)
        wanted = targets[lane, here, None]
        # Rounding can leave a divergence of nothing a hair below zero.
        divergence = (true_likely.exp() * (true_likely - likely)).sum(-1).clamp(min=0)
        found[lane] = [
            -likely.gather(-1, wanted).sum().item(),
            -true_likely.gather(-1, wanted).sum().item(),
            divergence.sum().item(),
            (logits[lane, here].argmax(-1) == true_logits[lane, here].argmax(-1)).sum().item(),
            here.sum().item(),
        ]
    return found
