"""The frozen model that a predictor is fitted on, from a folder or a name of the Hugging Face hub."""

from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer, find_moe_layers

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(name: str, device: str, dtype: str) -> tuple[Any, list[MoeLayer]]:
    """The model in evaluation mode, none of its weights to be trained, and its MoE layers.

    Raises:
        InputError: no such model, device or type, or a model without routed experts.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: known: {', '.join(DTYPES)}")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {_first_line(error)}") from None
    try:
        computed = dtype if dtype == "auto" else getattr(torch, dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=computed)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: cannot be loaded by transformers: {_first_line(error)}") from None
    model = model.to(place).eval().requires_grad_(False)
    return model, find_moe_layers(model)


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer.

    Raises:
        InputError: it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: no tokenizer can be loaded, give token ids (.npy): {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
