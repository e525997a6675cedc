"""The reference models, thin enough to train in minutes on one GPU.

Two have the routing shape of a published model, one is small enough that its weights ship.
"""

from dataclasses import dataclass

from transformers import OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from traces.recipes.corpus import SEPARATOR


@dataclass(frozen=True)
class Shape:
    """A model to train and how its trace is cut.

    `seconds` is the wall clock of training on one H200; `trace_predictors` are kept in the trace, as many as its size
    allows.
    """

    name: str
    description: str
    config: PreTrainedConfig
    seconds: float
    peak_learning_rate: float
    sequences_per_step: int
    prompt_tokens: int
    decode_tokens: int
    trace_predictors: tuple[str, ...]


def reference_16x64(vocabulary: int) -> Shape:
    """OLMoE-1B-7B's routing: 16 layers of 64 experts, 8 chosen, weights not renormalised."""
    config = OlmoeConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=256,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        max_position_embeddings=1024,
        # As the shipped model was trained; see the other shape for what a padding token costs.
        pad_token_id=SEPARATOR,
        eos_token_id=SEPARATOR,
        tie_word_embeddings=False,
    )
    return Shape(
        name="reference-16x64",
        description="OlmoeForCausalLM, hidden 512, expert 256: OLMoE-1B-7B's routing shape",
        config=config,
        seconds=330.0,
        peak_learning_rate=1.0e-3,
        sequences_per_step=64,
        prompt_tokens=64,
        decode_tokens=128,
        trace_predictors=("router-input", "residual", "residual+default-vectors"),
    )


def reference_48x128(vocabulary: int) -> Shape:
    """Qwen3-30B-A3B's routing: 48 layers of 128 experts, 8 chosen, weights renormalised."""
    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        # No padding token: its embedding is held at zero, and a window that begins with it stays zero through every
        # layer, where each norm multiplies the gradient by 1/sqrt(eps). Over 48 layers that overflows.
        pad_token_id=None,
        eos_token_id=SEPARATOR,
        tie_word_embeddings=False,
    )
    return Shape(
        name="reference-48x128",
        description="Qwen3MoeForCausalLM, hidden 256, expert 64: Qwen3-30B-A3B's routing shape",
        config=config,
        seconds=370.0,
        peak_learning_rate=1.0e-3,
        sequences_per_step=64,
        prompt_tokens=32,
        decode_tokens=64,
        trace_predictors=("residual", "residual+default-vectors"),
    )


def reference_8x16(vocabulary: int) -> Shape:
    """A model whose weights ship: 8 layers of 16 experts, 2 chosen, weights renormalised; 7.5 M parameters, 15.0 MB.

    It needs a small vocabulary (`smaller_vocabulary`), tied to the output: 12,288 entries would cost half of the bytes.
    """
    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=192,
        moe_intermediate_size=80,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        pad_token_id=None,
        eos_token_id=SEPARATOR,
        tie_word_embeddings=True,
    )
    return Shape(
        name="reference-8x16",
        description="Qwen3MoeForCausalLM, hidden 192, expert 80: small enough for its weights to ship",
        config=config,
        seconds=140.0,
        peak_learning_rate=2.0e-3,
        sequences_per_step=64,
        prompt_tokens=64,
        decode_tokens=128,
        trace_predictors=("router-input", "residual", "residual+default-vectors"),
    )


SHAPES = {
    "reference-16x64": reference_16x64,
    "reference-48x128": reference_48x128,
    "reference-8x16": reference_8x16,
}
