"""ModelSpec: a Mixture-of-Experts model as arithmetic: layers, experts, bytes and work.

Everything follows from the shape that the model's own config.json states. Kernels are given as work (operations,
bytes, shape), never as time: time is the hardware's.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.catalogue import find
from moesim.hugging_face import shape_from_config
from moesim.yaml_file import check, read_model

Precision = Literal["fp32", "bf16", "fp16", "int8", "int4", "mxfp4"]

BITS_PER_WEIGHT: dict[Precision, float] = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "int8": 8,
    "int4": 4.5,  # groups of 32 with a 16-bit scale
    "mxfp4": 4.25,  # blocks of 32 with an 8-bit scale (OCP Microscaling Formats 1.0, section 5)
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """The work of one kernel group: operations, bytes read or written in GPU memory, and the shape they come from."""

    name: str
    flops: int
    hbm_bytes: int
    experts: int
    tokens: int
    context_tokens: int


class LatentAttention(BaseModel):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): a small shared cache per token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kv_rank: int = Field(ge=1)
    rope_size: int = Field(ge=1)
    query_size: int = Field(ge=1)
    """Per head, without the rotary part."""
    value_size: int = Field(ge=1)
    query_rank: int | None = Field(default=None, ge=1)
    """Queries are compressed too in the larger models; None: they are not."""


class ModelSpec(BaseModel):
    """The shape of a model, as configs/models/NAME.yaml or a Hugging Face config.json states it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    layers: int = Field(ge=1)
    dense_layers: list[int] = []
    """Layers without routed experts."""
    experts: int = Field(ge=1)
    """Routed experts of a layer."""
    top_k: int = Field(ge=1)
    hidden: int = Field(ge=1)
    expert_intermediate: int = Field(ge=1)
    expert_matrices: Literal[2, 3] = 3
    """3: gate, up and down; 2: up and down."""
    expert_bias: bool = False
    shared_intermediate: int = Field(default=0, ge=0)
    """Width of what every token runs beside its experts: all shared experts together."""
    dense_intermediate: int = Field(default=0, ge=0)
    """Width of the feed-forward block of dense layers."""
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    attention_bias: bool = False
    latent: LatentAttention | None = None
    window_tokens: int | None = Field(default=None, ge=1)
    """Sliding window of `windowed_layers` layers; the others see everything."""
    windowed_layers: int = Field(default=0, ge=0)
    vocabulary: int = Field(ge=1)
    tied_embeddings: bool = False
    precision: Precision = "bf16"
    expert_precision: Precision = "bf16"

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSpec":
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts of a layer")
        if any(not 0 <= layer < self.layers for layer in self.dense_layers):
            raise ValueError(f"dense_layers {self.dense_layers} are not all among layers 0 to {self.layers - 1}")
        if len(self.dense_layers) == self.layers:
            raise ValueError("every layer is dense: a Mixture-of-Experts model has routed experts")
        if self.dense_layers and not self.dense_intermediate:
            raise ValueError("dense layers need dense_intermediate")
        return self

    @classmethod
    def load(cls, name_or_path: str) -> "ModelSpec":
        """The model of configs/models/NAME.yaml, of another YAML file, or of a Hugging Face config.json.

        Raises:
            ConfigError: nothing by that name, or a file that breaks a rule.
        """
        path = find("models", name_or_path)
        if path.suffix == ".json":
            return cls.from_hugging_face(path)
        return read_model(path, cls)

    @classmethod
    def from_hugging_face(cls, path: Path) -> "ModelSpec":
        """The model whose config.json is at `path`.

        Raises:
            ConfigError: not JSON, an unknown architecture, or a missing field.
        """
        return check(shape_from_config(path), cls, path)

    @property
    def moe_layers(self) -> list[int]:
        """The numbers of the layers with routed experts."""
        return [layer for layer in range(self.layers) if layer not in self.dense_layers]

    # ---- weights, in numbers and in bytes

    @property
    def expert_weights(self) -> int:
        """Weights of one routed expert, biases included."""
        return self._expert_matrix_weights + self._expert_biases

    @property
    def _expert_matrix_weights(self) -> int:
        return self.expert_matrices * self.hidden * self.expert_intermediate

    @property
    def _expert_biases(self) -> int:
        return (self.expert_matrices - 1) * self.expert_intermediate + self.hidden if self.expert_bias else 0

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert as it is stored and copied: matrices with scales, biases never quantised."""
        return self.expert_bytes_in(self.expert_precision)

    def expert_bytes_in(self, precision: Precision) -> int:
        """The same in another precision."""
        return self._bytes(self._expert_matrix_weights, precision) + self._bytes(self._expert_biases)

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's attention, without norms."""
        if self.latent is not None:
            latent, heads = self.latent, self.heads
            query_inputs = latent.query_rank or self.hidden
            query = query_inputs * heads * (latent.query_size + latent.rope_size)
            if latent.query_rank is not None:
                query += self.hidden * latent.query_rank
            down = self.hidden * (latent.kv_rank + latent.rope_size)
            up = latent.kv_rank * heads * (latent.query_size + latent.value_size)
            return query + down + up + heads * latent.value_size * self.hidden
        query, key_value = self.heads * self.head_size, self.kv_heads * self.head_size
        bias = query + 2 * key_value if self.attention_bias else 0
        return self.hidden * (2 * query + 2 * key_value) + bias

    @property
    def shared_weights(self) -> int:
        """Weights of one layer's shared experts."""
        return 3 * self.hidden * self.shared_intermediate

    @property
    def dense_weights(self) -> int:
        """All weights but the routed experts': what always stays on the GPU.

        Left out: norms inside the attention, sinks, biases of outputs and routers (ten millionths of the whole).
        """
        moe = len(self.moe_layers)
        per_layer = self.attention_weights + 2 * self.hidden
        mlp = self.expert_matrices * self.hidden * self.dense_intermediate
        embeddings = self.hidden * self.vocabulary * (1 if self.tied_embeddings else 2)
        routed = moe * (self.hidden * self.experts + self.shared_weights)
        return self.layers * per_layer + len(self.dense_layers) * mlp + routed + embeddings + self.hidden

    @property
    def weights(self) -> int:
        """All weights of the model."""
        return self.dense_weights + len(self.moe_layers) * self.experts * self.expert_weights

    @property
    def dense_bytes(self) -> int:
        """Bytes of what always stays on the GPU."""
        return self._bytes(self.dense_weights)

    def _bytes(self, weights: int, precision: Precision | None = None) -> int:
        return round(weights * BITS_PER_WEIGHT[precision or self.precision] / 8)

    def first_layers(self, layers: int) -> "ModelSpec":
        """The same model cut off behind so many layers, the same share of them with a window.

        It is what is measured where memory does not hold the whole.
        """
        return self.model_copy(update={
            "layers": layers,
            "dense_layers": [layer for layer in self.dense_layers if layer < layers],
            "windowed_layers": self.windowed_layers * layers // self.layers,
        })

    def with_experts_in(self, precision: Precision) -> "ModelSpec":
        """The same model with its routed experts in another precision: what drafts for it shares all else with it."""
        return self.model_copy(update={"expert_precision": precision})

    # ---- key-value cache

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token leaves in one layer's cache; 16-bit whatever the weights are."""
        if self.latent is not None:
            return 2 * (self.latent.kv_rank + self.latent.rope_size)
        return 2 * 2 * self.kv_heads * self.head_size

    def _cached_tokens(self, context_tokens: int) -> int:
        """Tokens kept by all layers together."""
        windowed = min(context_tokens, self.window_tokens) if self.window_tokens else context_tokens
        return (self.layers - self.windowed_layers) * context_tokens + self.windowed_layers * windowed

    def kv_bytes(self, context_tokens: int, sequences: int = 1) -> int:
        """Bytes of the key-value cache of `sequences` sequences of `context_tokens` each."""
        return sequences * self.kv_bytes_per_token * self._cached_tokens(context_tokens)

    def _seen_keys(self, new: int, context_tokens: int) -> int:
        """Keys that the last `new` tokens of a sequence attend to, themselves included, in all layers together."""

        def up_to(last: int, window: int) -> int:
            """The same for the first `last` tokens of a sequence, in one layer that looks back over `window`."""
            rising = min(last, window)
            return rising * (rising + 1) // 2 + (last - rising) * window

        window = self.window_tokens or context_tokens
        before = context_tokens - new
        full = up_to(context_tokens, context_tokens) - up_to(before, context_tokens)
        windowed = up_to(context_tokens, window) - up_to(before, window)
        return (self.layers - self.windowed_layers) * full + self.windowed_layers * windowed

    # ---- work of one layer

    def attention_kernel(self, tokens: int, context_tokens: int, sequences: int = 1) -> Kernel:
        """All dense work of one MoE layer but its router: norms, attention over the cache, shared experts.

        `tokens` of `sequences` sequences run together; each sequence is `context_tokens` long with them. Windowed
        layers count at their share, since the replay does not tell layers apart.
        """
        return self._dense_kernel("attention", self.shared_weights, tokens, context_tokens, sequences)

    def dense_layer_kernel(self, tokens: int, context_tokens: int, sequences: int = 1) -> Kernel:
        """All work of one layer without routed experts."""
        mlp = self.expert_matrices * self.hidden * self.dense_intermediate
        return self._dense_kernel("dense layer", mlp, tokens, context_tokens, sequences)

    def _dense_kernel(self, name: str, mlp: int, tokens: int, context_tokens: int, sequences: int) -> Kernel:
        weights = self.attention_weights + 2 * self.hidden + mlp
        cached = self._cached_tokens(context_tokens) // self.layers
        new = min(context_tokens, max(1, tokens // max(1, sequences)))
        if self.latent is not None:  # scores and values are taken in the latent space
            per_key = 2 * self.heads * (2 * self.latent.kv_rank + self.latent.rope_size)
        else:
            per_key = 4 * self.heads * self.head_size
        flops = tokens * 2 * weights + per_key * tokens * self._seen_keys(new, context_tokens) // (new * self.layers)
        hbm_bytes = self._bytes(weights) + sequences * self.kv_bytes_per_token * cached
        return Kernel(name, flops, hbm_bytes, 0, tokens, context_tokens)

    def router_kernel(self, tokens: int) -> Kernel:
        """Router, softmax and top-k of one layer."""
        weights = self.hidden * self.experts
        return Kernel("router", 2 * tokens * weights, self._bytes(weights), self.experts, tokens, 0)

    def experts_kernel(self, experts: int, token_expert_pairs: int, precision: Precision | None = None) -> Kernel:
        """`experts` distinct experts of one layer over `token_expert_pairs` pairs; `tokens` of the kernel are pairs.

        In another precision than the model's own it is another kernel, which no time of this one stands for.
        """
        return Kernel(
            "experts" if precision is None else f"experts {precision}",
            2 * token_expert_pairs * self.expert_weights,
            experts * self.expert_bytes_in(precision or self.expert_precision),
            experts,
            token_expert_pairs,
            0,
        )

    def cpu_expert_kernel(self, tokens: int) -> Kernel:
        """One expert over `tokens` on the CPU; `hbm_bytes` are read from the host's memory."""
        return replace(self.experts_kernel(1, tokens), name="cpu expert")

    def head_kernel(self, tokens: int) -> Kernel:
        """Final norm, output embedding and choice of the next token, for `tokens` sequences."""
        weights = self.hidden * self.vocabulary
        return Kernel("head", 2 * tokens * weights, self._bytes(weights), 0, tokens, 0)
