"""One small model with random weights of every family that the recorder is proved on."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)

VOCABULARY = 97
EXPERTS = 12
TOP_K = 3
LAYERS = 4

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": TOP_K, "max_position_embeddings": 128,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False,
}
_DEEPSEEK: dict[str, Any] = {
    **_COMMON, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": EXPERTS,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7,
}


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "olmoe": lambda: OlmoeConfig(**_COMMON, num_experts=EXPERTS, norm_topk_prob=False),
    "qwen2-moe": lambda: Qwen2MoeConfig(
        **_COMMON, num_experts=EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=24
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **_COMMON, num_experts=EXPERTS, moe_intermediate_size=16, norm_topk_prob=True, mlp_only_layers=[0], head_dim=8
    ),
    "mixtral": lambda: MixtralConfig(**_COMMON, num_local_experts=EXPERTS),
    "gpt-oss": lambda: GptOssConfig(**_COMMON, num_local_experts=EXPERTS, head_dim=8, sliding_window=8),
    "deepseek-v2": lambda: DeepseekV2Config(**_DEEPSEEK, topk_method="group_limited_greedy"),
    "deepseek-v3": lambda: DeepseekV3Config(**_DEEPSEEK, norm_topk_prob=True),
    "phi-moe": lambda: PhimoeConfig(**{**_COMMON, "num_experts_per_tok": 2}, num_local_experts=EXPERTS),
    "glm-4-moe": lambda: Glm4MoeConfig(
        **_COMMON, n_routed_experts=EXPERTS, moe_intermediate_size=16, n_shared_experts=1, first_k_dense_replace=1,
        n_group=2, topk_group=1, head_dim=8, norm_topk_prob=True, routed_scaling_factor=1.5,
    ),
    "granite-moe": lambda: GraniteMoeConfig(**_COMMON, num_local_experts=EXPERTS),
    "switch": lambda: SwitchTransformersConfig(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=24, num_heads=4, num_layers=4, num_decoder_layers=4,
        num_sparse_encoder_layers=2, num_sparse_decoder_layers=2, num_experts=EXPERTS, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1, expert_capacity=64,
    ),
}


def build(family: str) -> Any:
    """The family's model, its weights large enough that the routers have opinions and biases move the choice."""
    config = CONFIGS[family]()
    torch.manual_seed(0)
    factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = factory.from_config(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15, generator=generator)
            else:
                parameter.uniform_(0.7, 1.3, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()
