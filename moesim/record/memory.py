"""How much memory a recording needs and how much there is, before it starts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moesim.errors import InputError
from moesim.record.decoding import Decoding, TokenSequence, cached
from moesim.record.moe_layers import MoeLayer, evaluating

# Rows wait on the device until there are this many.
PIECE_TOKENS = 4096


def free_bytes(device: torch.device) -> int | None:
    """What is free on `device`; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None


def check_fits(what: str, needed: int, device: torch.device) -> None:
    """Refuse what does not fit into the free memory of `device`; `what` says what it is.

    Raises:
        InputError: it does not fit.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise InputError(f"{what}, {megabytes(free)} are free on {device}")


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def cache_bytes_per_token(model: Any) -> int:
    """Bytes that one more token takes in the KV cache: as much as a prompt of two takes more than one of one."""
    device = next(model.parameters()).device
    sizes = []
    with torch.inference_mode(), evaluating(model):
        for tokens in (1, 2):
            batch = cached(model)
            batch.prefill(torch.zeros((1, tokens), dtype=torch.long, device=device), None)
            sizes.append(_tensor_bytes(batch.cache))
    return sizes[1] - sizes[0]


def captured_bytes(
    layers: Sequence[MoeLayer], hidden: int, element_bytes: int, pass_tokens: int, *, scores: bool, predictors: int
) -> int:
    """The most that hooks and waiting rows hold: the largest pass with its states, and the rows of a piece."""
    experts, top_k = layers[0].layout.n_experts, layers[0].layout.top_k
    row = top_k * (4 + 2) + (2 * experts if scores else 0) + predictors * 12 * (4 + 2)
    state = top_k * (8 + element_bytes) + (4 * experts if scores or predictors else 0)
    state += predictors * 4 * experts + (2 * hidden * element_bytes if predictors else 0)
    return len(layers) * (pass_tokens * state + max(pass_tokens, PIECE_TOKENS) * row)


def check_memory(
    model: Any,
    layers: Sequence[MoeLayer],
    requests: Sequence[TokenSequence],
    decoding: Decoding,
    batch: int,
    *,
    scores: bool,
    predictors: int,
) -> str:
    """What recording takes beside the weights, in words.

    Raises:
        InputError: it is more than is free.
    """
    parameter = next(model.parameters())
    groups = [requests[start : start + batch] for start in range(0, len(requests), batch)]
    longest = max(
        len(group) * max(each.prompt_tokens + decoding.passes_after_prefill(each) for each in group)
        for group in groups
    )
    pass_tokens = max(len(group) * max(each.prompt_tokens for each in group) for group in groups)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    cache = longest * cache_bytes_per_token(model)
    captured = captured_bytes(
        layers, int(config.hidden_size), parameter.element_size(), pass_tokens, scores=scores, predictors=predictors
    )
    told = f"KV cache {megabytes(cache)} for {longest:,} tokens, captured states {megabytes(captured)}"
    check_fits(f"recording needs {told}", cache + captured, parameter.device)
    return told


def _tensor_bytes(cache: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors that hang on a cache object, each once."""
    seen = set() if seen is None else seen
    if id(cache) in seen:
        return 0
    seen.add(id(cache))
    if isinstance(cache, torch.Tensor):
        return cache.nbytes
    if isinstance(cache, list | tuple):
        return sum(_tensor_bytes(each, seen) for each in cache)
    if isinstance(cache, dict):
        return sum(_tensor_bytes(each, seen) for each in cache.values())
    module = type(cache).__module__
    return _tensor_bytes(vars(cache), seen) if module.startswith("transformers.cache") else 0
