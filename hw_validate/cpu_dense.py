"""The dense work of a model's layers on the processor: norms, attention, router, head; true shapes, by torch.

The counterpart of dense.py where there is no GPU, group by group and in the same order of sums. Nothing is captured;
weights, and keys and values of earlier tokens, are random here too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from hw_validate.dense import MAX_STEPS, SCALE, check_shape
from moesim.devices.base import Prepared
from moesim.model import Kernel, ModelSpec

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""By ModelSpec.precision."""
EPSILON = 1e-6
ROTARY_BASE = 1e6


@dataclass(frozen=True, slots=True)
class DenseGroup(Prepared):
    """A dense group as a function that runs it."""

    work: Callable[[], None]


class CpuDense:
    """Everything of a model but its routed experts, and the activations that flow through both.

    residual, normed   [tokens, hidden], bfloat16 or float32 as the model says
    pair_out           [tokens * top_k, hidden]: what each chosen expert gave for each token
    gates              [tokens, top_k] float32
    """

    def __init__(
        self, model: ModelSpec, layers: int, tokens: int, sequences: int, context_tokens: int, seed: int = 1
    ) -> None:
        """`layers` of the model for steps of `tokens` tokens in all, of `sequences` sequences.

        Raises:
            HardwareError: a shape that this engine does not have.
        """
        check_shape(model, tokens, sequences, context_tokens, tuple(DTYPES))
        self.model, self.layers = model, layers
        self.tokens, self.sequences, self.context_tokens = tokens, sequences, context_tokens
        self.dtype = dtype = DTYPES[model.precision]
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int, scale: float = SCALE) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype).normal_(0.0, scale, generator=generator)

        hidden, heads, kv_heads, size = model.hidden, model.heads, model.kv_heads, model.head_size
        self.embedding = random(model.vocabulary, hidden, scale=1.0)
        self.output = random(model.vocabulary, hidden)
        self.norms = torch.ones(2 * layers + 1, hidden)
        self.qkv = random(layers, (heads + 2 * kv_heads) * size, hidden)
        self.attended = random(layers, hidden, heads * size)
        self.routers = random(layers, model.experts, hidden)
        self.keys = random(layers, sequences, kv_heads, context_tokens, size, scale=1.0)
        self.values = random(layers, sequences, kv_heads, context_tokens, size, scale=1.0)

        self.token = torch.zeros(sequences, dtype=torch.long)
        self.residual = torch.zeros(tokens, hidden, dtype=dtype)
        self.normed = torch.zeros(tokens, hidden, dtype=dtype)
        self.pair_out = torch.zeros(tokens * model.top_k, hidden, dtype=dtype)
        self.gates = torch.zeros(tokens, model.top_k)
        self.host_ids = torch.zeros(tokens * model.top_k, dtype=torch.int32)
        """What a router, or the head, told last."""
        self.digests = torch.zeros(MAX_STEPS, dtype=torch.int64)
        """A sum over the bits of the residual stream at the end of each step."""
        self._ended_steps = 0
        self._digest_weights = torch.arange(tokens * hidden) * 2654435761 + 40503
        self._bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        self._cosine, self._sine = _rotation(tokens // sequences, context_tokens, size)
        self.groups: dict[tuple[str, int], DenseGroup] = {}
        """By name and layer; the head has layer -1."""
        attention = model.attention_kernel(tokens, context_tokens, sequences)
        for layer in range(layers):
            self._ready("attention", layer, attention, partial(self.attention, layer))
            self._ready("router", layer, model.router_kernel(tokens), partial(self.router, layer))
        self._ready("head", -1, model.head_kernel(sequences), self.head)

    # ---- the three groups

    def attention(self, layer: int) -> None:
        """What the experts of the layer before gave is added; then this layer's attention up to the router's input."""
        model, sequences, new = self.model, self.sequences, self.tokens // self.sequences
        if layer == 0:
            self.residual.copy_(self.embedding[self.token].repeat_interleave(new, 0))
            self._norm(0)
        else:
            self._add_experts(2 * layer)
        heads, kv_heads, size = model.heads, model.kv_heads, model.head_size
        projected = (self.normed @ self.qkv[layer].T).view(sequences, new, heads + 2 * kv_heads, size).transpose(1, 2)
        queries, keys, values = projected.split([heads, kv_heads, kv_heads], dim=1)
        self.keys[layer][:, :, -new:] = self._rotate(keys)
        self.values[layer][:, :, -new:] = values
        result = functional.scaled_dot_product_attention(
            self._rotate(queries), self.keys[layer], self.values[layer], is_causal=new > 1,
            enable_gqa=heads != kv_heads,
        )
        self.residual += result.transpose(1, 2).reshape(self.tokens, -1) @ self.attended[layer].T
        self._norm(2 * layer + 1)

    def router(self, layer: int) -> None:
        """Logits, top-k and gates; clears what the experts will write; the ids go to the host."""
        best, ids = (self.normed @ self.routers[layer].T).float().topk(self.model.top_k)
        self.gates.copy_(best.softmax(-1))
        self.pair_out.zero_()
        self.host_ids.copy_(ids.flatten())

    def head(self) -> None:
        """The last experts are added; final norm, output embedding, each sequence's next token; its id goes out."""
        self._add_experts(2 * self.layers)
        new = self.tokens // self.sequences
        torch.argmax(self.normed[new - 1 :: new] @ self.output.T, dim=-1, out=self.token)
        self.host_ids[: self.sequences] = self.token
        # Sums of integers have no order, so equal bits give equal digests.
        bits = self.residual.view(self._bits).flatten().long()
        self.digests[self._ended_steps] = (bits * self._digest_weights).sum()
        self._ended_steps += 1

    def _add_experts(self, norm: int) -> None:
        """The residual stream plus the experts' outputs by gate, in the order of choice whoever ran when."""
        outputs = self.pair_out.view(self.tokens, self.model.top_k, -1)
        total = self.residual.float()
        for choice in range(self.model.top_k):
            total = total + self.gates[:, choice, None] * outputs[:, choice].float()
        self.residual.copy_(total)
        self._norm(norm)

    def _norm(self, norm: int) -> None:
        wide = self.residual.float()
        self.normed.copy_(functional.rms_norm(wide, wide.shape[-1:], self.norms[norm], EPSILON))

    def _rotate(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of the step's tokens, [sequences, heads, new tokens, size]."""
        first, second = heads.float().chunk(2, dim=-1)
        cosine, sine = self._cosine, self._sine
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(self.dtype)

    def _ready(self, name: str, layer: int, kernel: Kernel, work: Callable[[], None]) -> None:
        self.groups[name, layer] = DenseGroup(name, "attention", layer, kernel, 0, 1, work)

    def reset(self) -> None:
        """As before the first step: token 0, no digests."""
        for tensor in (self.token, self.digests, self.pair_out, self.residual):
            tensor.zero_()
        self._ended_steps = 0


def _rotation(new_tokens: int, context_tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the last `new_tokens` positions: [new tokens, size / 2] each."""
    positions = torch.arange(context_tokens - new_tokens, context_tokens, dtype=torch.float64)
    frequencies = ROTARY_BASE ** -(torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angles = positions[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()
