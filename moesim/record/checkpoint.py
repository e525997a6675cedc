"""A transformers checkpoint, from a folder or by its name on the hub, refused before its weights are read."""

from typing import Any

import torch

from moesim.errors import InputError
from moesim.record.memory import check_fits, free_bytes, megabytes
from moesim.record.moe_layers import MoeLayer, find_moe_layers, router_paths
from moesim.record.weights import keep_hash, weights_sha256

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(name: str, device: str = "cpu", dtype: str = "auto") -> tuple[Any, list[MoeLayer]]:
    """The model in evaluation mode on `device`, and its MoE layers. `dtype` auto is the checkpoint's own.

    Its shape is looked at first, without weights: whether it routes, and whether it fits.

    Raises:
        InputError: no such model, device or type, no routed experts, a router of unknown kind, or too little memory.
    """
    place, computed = _device(device), _dtype(dtype)
    config = _config(name)
    hollow = _hollow(name, config, computed)
    router_paths(hollow)
    needed = weight_bytes(hollow)
    check_fits(f"{name}: the weights alone are {megabytes(needed)}", needed, place)
    factory = _factory(config)
    try:
        model: Any = factory.from_pretrained(name, dtype="auto")
        if computed not in ("auto", model.dtype):
            # Read again instead of cast: transformers keeps some modules in float32 whatever is asked for.
            as_stored = weights_sha256(model)
            del model
            model = factory.from_pretrained(name, dtype=computed)
            keep_hash(model, as_stored)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{name}: cannot be loaded by transformers: {_first_line(error)}") from None
    model = model.to(place).eval().requires_grad_(False)
    return model, find_moe_layers(model)


def load_tokenizer(name: str) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        InputError: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{name}: no tokenizer can be loaded, give token ids: {_first_line(error)}") from None


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    return sum(each.nbytes for each in [*model.parameters(), *model.buffers()])


def described_memory(model: torch.nn.Module) -> str:
    """The weights and what is free beside them, in words."""
    device = next(model.parameters()).device
    free = free_bytes(device)
    beside = "" if free is None else f", {megabytes(free)} free beside them"
    return f"weights {megabytes(weight_bytes(model))} on {device}{beside}"


def _device(device: str) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {_first_line(error)}") from None
    return place


def _dtype(dtype: str) -> Any:
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: known: {', '.join(DTYPES)}")
    return dtype if dtype == "auto" else getattr(torch, dtype)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{name}: cannot be loaded by transformers: {_first_line(error)}") from None


def _factory(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _hollow(name: str, config: Any, dtype: Any) -> Any:
    """The model without weights."""
    own = getattr(config, "dtype", None) or torch.float32
    try:
        with torch.device("meta"):
            return _factory(config).from_config(config, dtype=own if dtype == "auto" else dtype)
    except (ValueError, ImportError) as error:
        raise InputError(f"{name}: {type(config).__name__} is no language model here: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
