"""The dense work of a model's layers on the GPU: norms, attention, router, head; true shapes, captured in CUDA graphs.

What torch has in one call (products with weights, attention) is torch's; what lies between is in kernels/decode.cu.
Each group of the replay loop (attention, router, head) is captured once per layer and batch shape and replayed from
then on. Weights are random, and so are keys and values of earlier tokens. What counts is that the shapes, the bytes
and the order of the work are the model's.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hw_validate.driver import HardwareError, Module
from moesim.devices.base import Prepared
from moesim.model import Kernel, ModelSpec

MAX_PAIRS = 1024
MAX_STEPS = 65_536
SCALE = 0.02


@dataclass(frozen=True, slots=True)
class Captured(Prepared):
    """A dense group as a captured graph. `tells`: its last kernel writes ids to the host."""

    graph: Any
    tells: bool


def check_shape(
    model: ModelSpec, tokens: int, sequences: int, context_tokens: int, precisions: Sequence[str]
) -> None:
    """Raise HardwareError for a shape that neither engine has, or a precision that the present one has not."""
    if model.dense_layers or model.shared_intermediate or model.latent or model.windowed_layers:
        raise HardwareError(f"{model.name}: only models whose layers all are attention and routed experts run here")
    if model.precision not in precisions or model.expert_precision != model.precision or model.expert_matrices != 3:
        raise HardwareError(
            f"{model.name}: only {' or '.join(precisions)} models with gate, up and down matrices run here"
        )
    if tokens not in (sequences, sequences * context_tokens):
        raise HardwareError(
            f"{tokens} tokens of {sequences} sequences in a context of {context_tokens}: a step decodes one token "
            "of each sequence or prefills all of them"
        )
    if tokens * model.top_k > MAX_PAIRS:
        raise HardwareError(f"a step of {tokens} tokens with {model.top_k} experts each: at most {MAX_PAIRS} pairs")


class DenseLayers:
    """Everything of a model but its routed experts, and the activations that flow through both.

    residual, normed   [tokens, hidden] bf16
    pair_out           [tokens * top_k, hidden] bf16: what each chosen expert gave for each token
    gates              [tokens, top_k] float32
    """

    def __init__(
        self, model: ModelSpec, layers: int, tokens: int, sequences: int, context_tokens: int, seed: int = 1
    ) -> None:
        """`layers` of the model for steps of `tokens` tokens in all, of `sequences` sequences.

        Raises:
            HardwareError: a shape that this engine does not have.
        """
        check_shape(model, tokens, sequences, context_tokens, ("bf16",))
        self.model, self.layers = model, layers
        self.tokens, self.sequences, self.context_tokens = tokens, sequences, context_tokens
        device = torch.device("cuda")
        generator = torch.Generator(device=device).manual_seed(seed)

        def random(*shape: int, scale: float = SCALE) -> torch.Tensor:
            drawn = torch.empty(shape, dtype=torch.bfloat16, device=device)
            return drawn.normal_(0.0, scale, generator=generator)

        hidden, heads, kv_heads, size = model.hidden, model.heads, model.kv_heads, model.head_size
        width = heads + 2 * kv_heads
        self.embedding = random(model.vocabulary, hidden, scale=1.0)
        self.output = random(model.vocabulary, hidden)
        self.norms = torch.ones(2 * layers + 1, hidden, dtype=torch.bfloat16, device=device)
        self.qkv = random(layers, width * size, hidden)
        self.attended = random(layers, hidden, heads * size)
        self.routers = random(layers, model.experts, hidden)
        self.keys = random(layers, sequences, kv_heads, context_tokens, size, scale=1.0)
        self.values = random(layers, sequences, kv_heads, context_tokens, size, scale=1.0)

        pairs = tokens * model.top_k
        new: Any = {"dtype": torch.bfloat16, "device": device}
        self.token = torch.zeros(sequences, dtype=torch.long, device=device)
        self.residual = torch.zeros(tokens, hidden, **new)
        self.normed = torch.zeros(tokens, hidden, **new)
        self.pair_out = torch.zeros(pairs, hidden, **new)
        self.pair_hidden = torch.zeros(pairs, model.expert_intermediate, **new)
        self.gates = torch.zeros(tokens, model.top_k, dtype=torch.float32, device=device)
        self._projected = torch.zeros(tokens, width * size, **new)
        self._queries = torch.zeros(sequences, heads, tokens // sequences, size, **new)
        self._attended = torch.zeros(tokens, heads * size, **new)
        self._added = torch.zeros(tokens, hidden, **new)
        self._logits = torch.zeros(tokens, model.experts, **new)

        self.host_ids = torch.zeros(max(pairs, tokens), dtype=torch.int32).pin_memory()
        self.host_flag = torch.zeros(1, dtype=torch.int32).pin_memory()
        self.counters = torch.zeros(3, dtype=torch.int32, device=device)
        self.norm_ns = torch.zeros(2 * layers + 1, 2, dtype=torch.int64, device=device)
        """By the GPU's clock: begin and end of each layer's two norms, and of the head's; of the latest step."""
        self.told_ns = torch.zeros(layers + 1, dtype=torch.int64, device=device)
        """... and when each layer's router, and the head, told its ids."""
        self.digests = torch.zeros(MAX_STEPS, dtype=torch.int64, device=device)
        """A sum over the bits of the residual stream at the end of each step."""
        self.module = Module(
            Path(__file__).with_name("kernels") / "decode.cu",
            HIDDEN=hidden, INTERMEDIATE=model.expert_intermediate, TOP_K=model.top_k, EXPERTS=model.experts,
            HEADS=heads, KV_HEADS=kv_heads, HEAD_SIZE=size, MAX_EXPERTS=model.experts, MAX_PAIRS=MAX_PAIRS,
        )
        self.stream = torch.cuda.Stream()
        """Where all kernels run."""
        self.groups: dict[tuple[str, int], Captured] = {}
        """By name and layer; the head has layer -1."""
        self._pool = torch.cuda.graph_pool_handle()

    # ---- the three groups, as enqueued under capture

    def attention(self, layer: int) -> None:
        """What the experts of the layer before gave is added; then this layer's attention up to the router's input."""
        new_tokens = self.tokens // self.sequences
        if layer == 0:
            start = self.embedding[self.token]
            self.residual.copy_(start.repeat_interleave(new_tokens, 0))
            self._add_norm(self._added, None, 0, 0)
        else:
            self._add_norm(self.pair_out, self.gates, self.model.top_k, 2 * layer)
        torch.mm(self.normed, self.qkv[layer].T, out=self._projected)
        kernel = self.module.launch(
            "rotate_append",
            [*map(_pointer, (self._projected, self._queries, self.keys[layer], self.values[layer])),
             ctypes.c_int(new_tokens), ctypes.c_int(self.context_tokens)],
            self.model.head_size // 2,
        )
        kernel(_stream(), self.tokens, self.model.heads + 2 * self.model.kv_heads)
        # Flash attention sums in one order; cuDNN's, which torch would choose here, was seen not to.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            result = functional.scaled_dot_product_attention(
                self._queries, self.keys[layer], self.values[layer], is_causal=new_tokens > 1,
                enable_gqa=self.model.heads != self.model.kv_heads,
            )
        self._attended.copy_(result.transpose(1, 2).reshape(self.tokens, -1))
        torch.mm(self._attended, self.attended[layer].T, out=self._added)
        self._add_norm(self._added, None, 1, 2 * layer + 1)

    def router(self, layer: int) -> None:
        """Logits, top-k and gates; the ids go to the host."""
        torch.mm(self.normed, self.routers[layer].T, out=self._logits)
        kernel = self.module.launch(
            "choose",
            [*map(_pointer, (self._logits, self.gates, self.pair_out)), ctypes.c_int(self.tokens),
             *map(_pointer, (self.host_ids, self.host_flag, self.counters, self.told_ns[layer]))],
            256,
        )
        kernel(_stream(), self.tokens)

    def head(self) -> None:
        """The last experts are added; final norm, output embedding, each sequence's next token; its id goes out."""
        self._add_norm(self.pair_out, self.gates, self.model.top_k, 2 * self.layers)
        last = self.normed[self.tokens // self.sequences - 1 :: self.tokens // self.sequences]
        torch.argmax(last @ self.output.T, dim=-1, out=self.token)
        kernel = self.module.launch(
            "tell",
            [_pointer(self.token), ctypes.c_int(self.sequences), _pointer(self.residual), ctypes.c_int(self.tokens),
             _pointer(self.digests),
             *map(_pointer, (self.host_ids, self.host_flag, self.counters, self.told_ns[self.layers]))],
            256,
        )
        kernel(_stream(), 1)

    def _add_norm(self, added: torch.Tensor, gates: torch.Tensor | None, terms: int, norm: int) -> None:
        weights = ctypes.c_uint64(0) if gates is None else _pointer(gates)
        kernel = self.module.launch(
            "add_norm",
            [_pointer(self.residual), _pointer(added), weights, ctypes.c_int(terms), _pointer(self.norms[norm]),
             _pointer(self.normed), _pointer(self.norm_ns[norm])],
            256,
        )
        kernel(_stream(), self.tokens)

    # ---- capture

    def capture(self) -> None:
        """Capture every group of every layer and run each once: first launches are slow."""
        model, tokens = self.model, self.tokens
        attention = model.attention_kernel(tokens, self.context_tokens, self.sequences)
        for layer in range(self.layers):
            self._capture("attention", layer, attention, partial(self.attention, layer), tells=False)
            self._capture("router", layer, model.router_kernel(tokens), partial(self.router, layer), tells=True)
        self._capture("head", -1, model.head_kernel(self.sequences), self.head, tells=True)
        with torch.cuda.stream(self.stream):
            for group in self.groups.values():
                group.graph.replay()
        self.reset()

    def _capture(self, name: str, layer: int, kernel: Kernel, enqueue: Callable[[], None], *, tells: bool) -> None:
        with torch.cuda.stream(self.stream):
            enqueue()  # once outside of the capture, so that libraries have made what they need
            self.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self.stream):
                enqueue()
        self.groups[name, layer] = Captured(name, "attention", layer, kernel, 0, 1, graph, tells)

    def busy(self) -> Callable[[int], None]:
        """Enqueue a kernel on `stream` that runs for so many nanoseconds and does nothing."""
        length = ctypes.c_uint64(0)
        kernel = self.module.launch("busy", [length], 1)

        def enqueue(duration_ns: int) -> None:
            length.value = duration_ns
            kernel(self.stream.cuda_stream, 1)

        return enqueue

    def spans_ns(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Begin and end of every group in the latest step, by the GPU's clock; groups as in `groups`."""
        norms, told = self.norm_ns.tolist(), self.told_ns.tolist()
        spans = {("head", -1): (norms[2 * self.layers][0], told[self.layers])}
        for layer in range(self.layers):
            spans["attention", layer] = norms[2 * layer][0], norms[2 * layer + 1][1]
            spans["router", layer] = norms[2 * layer + 1][1], told[layer]
        return spans

    def reset(self) -> None:
        """As before the first step: token 0, nothing told to the host, no digests."""
        torch.cuda.synchronize()
        for tensor in (self.token, self.counters, self.digests, self.pair_out, self.pair_hidden, self.residual):
            tensor.zero_()
        torch.cuda.synchronize()
        self.host_flag.zero_()


def _pointer(tensor: torch.Tensor) -> ctypes.c_uint64:
    return ctypes.c_uint64(tensor.data_ptr())


def _stream() -> int:
    stream: int = torch.cuda.current_stream().cuda_stream
    return stream
