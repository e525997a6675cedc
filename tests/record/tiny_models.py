"""Models small enough to run in a test, with random weights large enough that their routers have opinions."""

from typing import Any

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

VOCABULARY = 97
EXPERTS = 12
TOP_K = 3


def olmoe() -> Any:
    """Five MoE layers; gate weights as they come out of the softmax."""
    return _opinionated(OlmoeForCausalLM(OlmoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=16, num_hidden_layers=5, num_attention_heads=4,
        num_experts=EXPERTS, num_experts_per_tok=TOP_K, norm_topk_prob=False, max_position_embeddings=64,
        pad_token_id=None, eos_token_id=None,
    )))


def qwen3() -> Any:
    """Six layers, the first and the fourth of them dense; gate weights renormalised."""
    return _opinionated(Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=24, moe_intermediate_size=16, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=TOP_K,
        norm_topk_prob=True, mlp_only_layers=[0, 3], max_position_embeddings=64,
    )))


def _opinionated(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15, generator=generator)
            else:
                parameter.uniform_(0.7, 1.3, generator=generator)
    return model.eval()
