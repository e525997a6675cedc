"""Where a model's routers are, found by their class name, and the modules that a recording needs around each.

transformers names every router class `*TopKRouter`. Its parent is the MoE block, and the block's parent the decoder
layer. Which norm feeds the block is not a matter of names: a probe forward pass shows whose output the block receives.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moesim.errors import InputError


@dataclass(frozen=True, eq=False)
class MoeLayer:
    """One MoE layer of a model.

    `number` is the model's own number of the decoder layer. `norm` is the norm whose output enters `block`; what
    enters the norm is the residual stream after attention, r_l of arXiv 2603.19289. `attention` is the layer's only
    attention module, None where there is no such thing.
    """

    number: int
    block: nn.Module
    router: nn.Module
    experts: nn.Module
    norm: nn.Module
    attention: nn.Module | None


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers of a transformers causal language model, in the order of their numbers.

    Runs one forward pass over a single token to see which norm feeds each block.

    Raises:
        InputError: the model has no router that can be recognised, or a block that no norm of its layer feeds.
    """
    modules = dict(model.named_modules())
    places: list[tuple[int, str, str]] = []  # layer number, router's path, block's path
    for path, module in modules.items():
        if type(module).__name__.endswith("TopKRouter"):
            block_path = path.rpartition(".")[0]
            found = re.search(r"\.(\d+)\.", f".{path}")
            if found is None:
                raise InputError(f"{type(model).__name__}: router {path} stands in no numbered layer")
            places.append((int(found[1]), path, block_path))
    if not places:
        raise InputError(f"{type(model).__name__}: no module whose class is named *TopKRouter, so no router to record")
    norms = _feeding_norms(model, [block for _, _, block in places])
    layers = []
    for number, path, block_path in sorted(places):
        experts = modules.get(f"{block_path}.experts")
        if experts is None:
            raise InputError(f"{type(model).__name__}: MoE block {block_path} has no module named experts")
        siblings = modules[block_path.rpartition(".")[0]].children()
        attentions = [child for child in siblings if type(child).__name__.endswith("Attention")]
        attention = attentions[0] if len(attentions) == 1 else None
        layers.append(MoeLayer(number, modules[block_path], modules[path], experts, norms[block_path], attention))
    return layers


def _feeding_norms(model: nn.Module, block_paths: list[str]) -> dict[str, nn.Module]:
    """For each MoE block the sibling norm whose output tensor is the very tensor that the block receives."""
    modules = dict(model.named_modules())
    feeds: dict[str, nn.Module] = {}
    handles: list[Any] = []
    for block_path in block_paths:
        outputs: dict[int, tuple[torch.Tensor, nn.Module]] = {}

        def remember(module: nn.Module, _: Any, output: Any, outputs: Any = outputs) -> None:
            if isinstance(output, torch.Tensor):
                outputs[id(output)] = (output, module)  # holding the tensor keeps its id its own

        def match(_: nn.Module, args: Any, path: str = block_path, outputs: Any = outputs) -> None:
            if id(args[0]) in outputs:
                feeds[path] = outputs[id(args[0])][1]

        siblings = modules[block_path.rpartition(".")[0]].children()
        norms = [child for child in siblings if type(child).__name__.endswith("Norm")]
        handles.extend(norm.register_forward_hook(remember) for norm in norms)
        handles.append(modules[block_path].register_forward_pre_hook(match))
    try:
        device = next(model.parameters()).device
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for path in block_paths:
        if path not in feeds:
            raise InputError(f"{type(model).__name__}: no norm beside MoE block {path} produces its input")
    return feeds
