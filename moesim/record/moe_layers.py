"""Where a model's routers are, found by their class name, and the modules that a recording needs around each.

transformers names its router classes `*Router` (`*TopKRouter`, `*TopkRouter`, `*Top1Router`). A router's parent is the
MoE block, and the block's parent the decoder layer. What the router returns and which norm feeds the block are not
matters of names: a probe forward pass shows them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.router_layout import RouterLayout, read_layout

_PROBE_TOKENS = 3


@dataclass(frozen=True, eq=False)
class MoeLayer:
    """One MoE layer of a model.

    `number` is the model's own number of the layer; in an encoder-decoder the decoder's count on from the encoder's.
    `attention` is the layer's only attention module, `feeding_norm` the norm whose output enters `block`; None where
    there is no such thing.
    """

    number: int
    in_encoder: bool
    block: nn.Module
    router: nn.Module
    experts: nn.Module
    feeding_norm: nn.Module | None
    attention: nn.Module | None
    layout: RouterLayout

    @property
    def norm(self) -> nn.Module:
        """The norm that feeds the block; what enters it is the residual stream after attention, r_l of 2603.19289.

        Raises:
            InputError: no norm beside the block produces its input.
        """
        if self.feeding_norm is None:
            raise InputError(f"layer {self.number}: no norm beside {type(self.block).__name__} produces its input")
        return self.feeding_norm


def router_paths(model: nn.Module) -> list[tuple[int, str]]:
    """The number of every MoE layer of a model and the path of its router, in the order of the numbers.

    Needs no weights: a model on the meta device will do.

    Raises:
        InputError: there is no router, one stands in no numbered layer, or two in the same.
    """
    offset = _encoder_layers(model)
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        if not type(module).__name__.endswith("Router"):
            continue
        number = re.search(r"\.(\d+)\.", f".{path}")
        if number is None:
            raise InputError(f"{type(model).__name__}: router {path} stands in no numbered layer")
        at = int(number[1]) + (0 if _in_encoder(path) else offset)
        if at in found:
            raise InputError(f"{type(model).__name__}: layer {at} has two routers, {found[at]} and {path}")
        found[at] = path
    if not found:
        raise InputError(
            f"{type(model).__name__} has no routed experts: no module whose class is named *Router"
        )
    return sorted(found.items())


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers of a transformers language model, in the order of their numbers.

    Runs one forward pass over a few tokens to see what each router returns and which norm feeds each block.

    Raises:
        InputError: the model has no router that can be recognised, or its layers differ in their routing shape.
    """
    places = router_paths(model)
    modules = dict(model.named_modules())
    blocks = {path: path.rpartition(".")[0] for _, path in places}
    norms, inputs = _probe(model, blocks)
    layouts: dict[type[nn.Module], RouterLayout] = {}
    layers = []
    for number, path in places:
        router, experts = modules[path], modules.get(f"{blocks[path]}.experts")
        if experts is None:
            raise InputError(f"{type(model).__name__}: MoE block {blocks[path]} has no module named experts")
        if path not in inputs:
            raise InputError(f"{type(model).__name__}: router {path} does not run: its block computes without it")
        if type(router) not in layouts:
            with torch.inference_mode(), evaluating(model):
                layouts[type(router)] = read_layout(router, inputs[path])
        siblings = modules[blocks[path].rpartition(".")[0]].children()
        attentions = [child for child in siblings if type(child).__name__.endswith("Attention")]
        layers.append(
            MoeLayer(
                number=number,
                in_encoder=bool(_encoder_layers(model)) and _in_encoder(path),
                block=modules[blocks[path]],
                router=router,
                experts=experts,
                feeding_norm=norms.get(path),
                attention=attentions[0] if len(attentions) == 1 else None,
                layout=layouts[type(router)],
            )
        )
    if len({(layer.layout.n_experts, layer.layout.top_k) for layer in layers}) > 1:
        raise InputError(f"{type(model).__name__}: its layers differ in experts or top-k, a trace has one of each")
    return layers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode (no dropout, no router noise), and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _encoder_layers(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    return int(config.num_layers) if getattr(config, "is_encoder_decoder", False) else 0


def _in_encoder(path: str) -> bool:
    return "encoder" in path.split(".")


def _probe(model: nn.Module, blocks: dict[str, str]) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """By the router's path: the sibling norm whose output is the tensor that the block receives; the router's input."""
    modules = dict(model.named_modules())
    norms: dict[str, nn.Module] = {}
    inputs: dict[str, torch.Tensor] = {}
    handles: list[Any] = []
    for path, block_path in blocks.items():
        outputs: dict[int, tuple[torch.Tensor, nn.Module]] = {}

        def remember(module: nn.Module, _: Any, output: Any, outputs: Any = outputs) -> None:
            if isinstance(output, torch.Tensor):
                outputs[id(output)] = (output, module)  # holding the tensor keeps its id its own

        def match(_: nn.Module, args: Any, path: str = path, outputs: Any = outputs) -> None:
            if args and id(args[0]) in outputs:
                norms[path] = outputs[id(args[0])][1]

        def keep(_: nn.Module, args: Any, path: str = path) -> None:
            inputs[path] = args[0]

        siblings = modules[block_path.rpartition(".")[0]].children()
        handles.extend(
            child.register_forward_hook(remember) for child in siblings if type(child).__name__.endswith("Norm")
        )
        handles.append(modules[block_path].register_forward_pre_hook(match))
        handles.append(modules[path].register_forward_pre_hook(keep))
    try:
        device = next(model.parameters()).device
        tokens = torch.zeros((1, _PROBE_TOKENS), dtype=torch.long, device=device)
        both_sides = {"decoder_input_ids": tokens} if _encoder_layers(model) else {}
        with torch.inference_mode(), evaluating(model):
            model(input_ids=tokens, use_cache=False, **both_sides)
    finally:
        for handle in handles:
            handle.remove()
    return norms, inputs
