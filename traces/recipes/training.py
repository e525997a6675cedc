"""Training within a wall-clock budget: random weights in, a language model out that has read every kind of text.

The model computes in bfloat16; float32 master copies take the optimizer's steps. (Autocast would not do: the grouped
matrix product of transformers casts to the weights' type, and float32 weights would multiply in float32.)

The balance loss is taken per layer over the whole batch of mixed kinds (Switch Transformer, arXiv 2101.03961, eq. 4).
That keeps every layer's load even and leaves experts free to belong to a kind of text; the one inside transformers
averages over layers and so balances none.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM

from moesim.record.moe_layers import MoeLayer
from traces.recipes.shapes import Shape

SEQUENCE_TOKENS = 512
BALANCE_WEIGHT = 0.01
WARM_UP_SHARE = 0.04
FINAL_RATE_SHARE = 0.05


def build_model(shape: Shape, device: str, seed: int = 0) -> Any:
    """The shape's model with random weights, bfloat16; what writes to the residual stream is scaled by depth."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        shape.config, dtype=torch.bfloat16, experts_implementation="grouped_mm", attn_implementation="sdpa"
    ).to(device)
    scale = (2 * shape.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(scale)
    return model


def load_model(checkpoint: Path, device: str) -> Any:
    """What `save_pretrained` left of a trained model, in the implementations that it was trained in, for evaluation."""
    model = AutoModelForCausalLM.from_pretrained(  # type: ignore[no-untyped-call]
        checkpoint, dtype=torch.bfloat16, experts_implementation="grouped_mm", attn_implementation="sdpa"
    )
    return model.to(device).eval()


class MixedBatches:
    """Random windows of the training arrays; a kind's share is the square root of its size, so small ones count."""

    def __init__(self, arrays: dict[str, NDArray[np.uint16]], sequences: int, seed: int = 0) -> None:
        self._arrays = list(arrays.values())
        share = np.sqrt([len(array) for array in self._arrays])
        self._share = share / share.sum()
        self._sequences = sequences
        self._random = np.random.default_rng(seed)

    def next(self) -> torch.Tensor:
        """Token ids [sequences, SEQUENCE_TOKENS + 1]: each window and the token after it."""
        rows = []
        for kind in self._random.choice(len(self._arrays), self._sequences, p=self._share):
            array = self._arrays[kind]
            start = self._random.integers(len(array) - SEQUENCE_TOKENS - 1)
            rows.append(array[start : start + SEQUENCE_TOKENS + 1])
        return torch.from_numpy(np.stack(rows).astype(np.int64))


class RouterBalance:
    """Hooks on the routers; `loss` is the mean over layers of E · Σ_e f_e · P_e, one where a layer is even."""

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._terms: list[torch.Tensor] = []
        for layer in layers:
            layer.router.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
        logits, _weights, chosen = output
        if torch.is_grad_enabled():
            n_experts = logits.shape[-1]
            flat = chosen.flatten()
            ones = torch.ones_like(flat, dtype=torch.float)
            counts = torch.zeros(n_experts, device=flat.device).scatter_add_(0, flat, ones)
            self._terms.append(n_experts * (counts / flat.numel() * logits.float().softmax(-1).mean(0)).sum())

    def loss(self) -> torch.Tensor:
        """The balance loss of the forward pass just run."""
        mean: torch.Tensor = torch.stack(self._terms).mean()
        self._terms.clear()
        return mean


def rate_share(progress: float) -> float:
    """The learning rate at `progress` in [0, 1], as a share of its peak: linear warm-up, then a cosine."""
    if progress < WARM_UP_SHARE:
        return (progress + 0.002) / (WARM_UP_SHARE + 0.002)
    fallen = (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, fallen)))


def train(
    model: Any,
    layers: Sequence[MoeLayer],
    batches: MixedBatches,
    *,
    seconds: float,
    most_steps: int | None = None,
    peak_learning_rate: float,
) -> dict[str, Any]:
    """Train until `seconds` of wall clock have passed or `most_steps` are done; returns what the provenance says of it.

    Raises:
        FloatingPointError: the loss is no longer a number, or too many gradients are none.
    """
    device = next(model.parameters()).device
    balance = RouterBalance(layers)
    parameters: list[torch.Tensor] = list(model.parameters())
    masters = [parameter.detach().float().clone() for parameter in parameters]
    gradients = [torch.zeros_like(master) for master in masters]
    for master, gradient in zip(masters, gradients, strict=True):
        master.grad = gradient
    matrices = [m for m in masters if m.dim() >= 2]
    vectors = [m for m in masters if m.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak_learning_rate,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    model.train()
    began = time.monotonic()
    steps, skipped, tokens, elapsed, progress, loss = 0, 0, 0, 0.0, 0.0, torch.zeros(())
    while progress < 1:
        rate = peak_learning_rate * rate_share(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches.next().to(device, non_blocking=True)
        hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        loss = F.cross_entropy(model.lm_head(hidden).float().flatten(0, 1), batch[:, 1:].flatten())
        even = balance.loss()
        torch.autograd.backward(loss + BALANCE_WEIGHT * even)
        torch._foreach_copy_(gradients, [parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(masters, 1.0)
        if math.isfinite(norm.item()):
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)
        else:
            skipped += 1
            if skipped > 20 and skipped > steps / 10:
                raise FloatingPointError(f"{skipped} of {steps} steps had gradients that are no numbers")
        for parameter in parameters:
            parameter.grad = None
        steps += 1
        tokens += batch[:, 1:].numel()
        if steps % 20 == 0:
            line = f"step {steps} loss {loss.item():.3f} balance {even.item():.3f} norm {norm.item():.2f}"
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"training diverged by {line}")
            print(f"{line} rate {rate:.2e} {tokens / (time.monotonic() - began):,.0f} tokens/s", flush=True)
        elapsed = time.monotonic() - began
        progress = max(elapsed / seconds, steps / most_steps if most_steps else 0.0)
    model.eval()
    return {
        "steps": steps,
        "steps_skipped": skipped,
        "tokens": tokens,
        "seconds": round(elapsed, 1),
        "final_batch_loss": round(loss.item(), 4),
        "sequence_tokens": SEQUENCE_TOKENS,
        "peak_learning_rate": peak_learning_rate,
        "balance_weight": BALANCE_WEIGHT,
    }


@torch.inference_mode()
def perplexities(model: Any, held_out: dict[str, NDArray[np.uint16]]) -> dict[str, float]:
    """Perplexity per token of each kind's held-out text, in windows of SEQUENCE_TOKENS without shared context."""
    device = next(model.parameters()).device
    found = {}
    for kind, array in held_out.items():
        windows = min(64, (len(array) - 1) // SEQUENCE_TOKENS)
        starts = np.arange(windows)[:, None] * SEQUENCE_TOKENS
        ids = torch.from_numpy(array[starts + np.arange(SEQUENCE_TOKENS + 1)].astype(np.int64)).to(device)
        losses = []
        for some in torch.split(ids, 16):
            logits = model(input_ids=some[:, :-1], use_cache=False).logits.float()
            losses.append(F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="none"))
        found[kind] = round(math.exp(torch.cat(losses).mean().item()), 2)
    return found
