"""The kernel groups of a step, looked up once per shape and not once per token."""

from dataclasses import dataclass, field, replace
from typing import Any

from moesim.devices.base import Device, Prepared
from moesim.engine import EngineSpec
from moesim.model import ModelSpec
from moesim.versions import Versions


@dataclass(slots=True)
class Kernels:
    """Kernel groups by their arguments, made ready once. `of` stands before their names on a timeline."""

    device: Device[Any]
    model: ModelSpec
    engine: EngineSpec
    of: str = ""
    versions: Versions | None = None
    """Needed where experts run in another precision than the model's."""
    ready: dict[tuple[Any, ...], Prepared] = field(default_factory=dict)

    def attention(self, layer: int, tokens: int, context_tokens: int, sequences: int) -> Prepared:
        """The dense work of a MoE layer but its router."""
        key = ("attention", layer, tokens, context_tokens, sequences)
        if key not in self.ready:
            kernel = self.model.attention_kernel(tokens, context_tokens, sequences)
            self.ready[key] = self.device.prepare(
                f"{self.of}attention", "attention", layer, kernel, self.engine.launched("attention")
            )
        return self.ready[key]

    def dense_layer(self, layer: int, tokens: int, context_tokens: int, sequences: int) -> Prepared:
        """A layer without routed experts."""
        key = ("dense layer", layer, tokens, context_tokens, sequences)
        if key not in self.ready:
            kernel = self.model.dense_layer_kernel(tokens, context_tokens, sequences)
            self.ready[key] = self.device.prepare(
                f"{self.of}dense layer", "attention", layer, kernel, self.engine.launched("attention")
            )
        return self.ready[key]

    def router(self, layer: int, tokens: int) -> Prepared:
        """Router and top-k of a layer."""
        key = ("router", layer, tokens)
        if key not in self.ready:
            kernel = self.model.router_kernel(tokens)
            self.ready[key] = self.device.prepare(
                f"{self.of}router", "attention", layer, kernel, self.engine.launched("router")
            )
        return self.ready[key]

    def experts(self, layer: int, experts: int, pairs: int, version: int = 0) -> Prepared:
        """Distinct experts of a layer, in one version, over so many (token, expert) pairs."""
        key = ("experts", layer, experts, pairs, version)
        if key not in self.ready:
            kernel = (
                self.model.experts_kernel(experts, pairs) if self.versions is None
                else self.versions.kernel(version, experts, pairs)
            )
            self.ready[key] = self.device.prepare(
                f"{self.of}experts", "experts", layer, kernel, self.engine.launched("experts", experts)
            )
        return self.ready[key]

    def servers(self, layer: int, tokens: int) -> Prepared:
        """Experts side by side, each a server of its own, of which the slowest takes `tokens` one after another."""
        key = ("servers", layer, tokens)
        if key not in self.ready:
            one = self.device.prepare(
                f"{self.of}experts", "experts", layer, self.model.experts_kernel(1, 1),
                self.engine.launched("experts", 1),
            )
            self.ready[key] = replace(one, duration_ns=tokens * one.duration_ns)
        return self.ready[key]

    def head(self, tokens: int) -> Prepared:
        """The next token of so many sequences."""
        key = ("head", tokens)
        if key not in self.ready:
            kernel = self.model.head_kernel(tokens)
            self.ready[key] = self.device.prepare(
                f"{self.of}head", "attention", -1, kernel, self.engine.launched("head")
            )
        return self.ready[key]
