"""Models against the figures that their makers and SYSTEMS papers publish."""

import json

import pytest

from moesim.catalogue import names
from moesim.errors import InputError
from moesim.model import ModelSpec

# total parameters in billions, as published (the source is in each model's file)
PUBLISHED_BILLIONS = {
    "qwen3-30b-a3b": 30.5, "olmoe-1b-7b": 6.92, "mixtral-8x7b": 46.7, "gpt-oss-20b": 20.9, "gpt-oss-120b": 116.8,
    "deepseek-v2-lite": 15.7, "qwen1.5-moe-a2.7b": 14.3, "phi-3.5-moe": 41.9, "switch-base-128": 7.4,
    "switch-base-256": 14.7,
}
# decimal megabytes of one expert in 16 bits (arXiv 2602.03921, models table; Qwen3: 3 x 2048 x 768 x 2)
PUBLISHED_EXPERT_MB = {
    "olmoe-1b-7b": 12.58, "mixtral-8x7b": 352.3, "qwen1.5-moe-a2.7b": 17.30, "phi-3.5-moe": 157.3, "qwen3-30b-a3b": 9.437,
}


@pytest.mark.parametrize("name", names("models"))
def test_total_parameters_are_the_published_ones(name):
    assert ModelSpec.load(name).weights / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name], rel=0.006)


@pytest.mark.parametrize(("name", "megabytes"), PUBLISHED_EXPERT_MB.items())
def test_an_expert_is_as_large_as_published(name, megabytes):
    assert ModelSpec.load(name).expert_bytes / 1e6 == pytest.approx(megabytes, rel=0.001)


def test_quantised_experts_are_smaller_and_nothing_else_is():
    model = ModelSpec.load("gpt-oss-120b")
    wide = model.model_copy(update={"expert_precision": "bf16"})
    assert model.expert_bytes == pytest.approx(wide.expert_bytes * 4.25 / 16, abs=1)
    assert model.dense_bytes == wide.dense_bytes


def test_the_key_value_cache_by_hand():
    # 48 layers x 2 x 4 heads x 128 x 2 bytes
    assert ModelSpec.load("qwen3-30b-a3b").kv_bytes(1000) == 48 * 2 * 4 * 128 * 2 * 1000
    # latent: 27 layers x (512 + 64) x 2 bytes
    assert ModelSpec.load("deepseek-v2-lite").kv_bytes(1000, sequences=3) == 3 * 27 * 576 * 2 * 1000
    # 12 of 24 layers keep 128 tokens
    assert ModelSpec.load("gpt-oss-20b").kv_bytes(1000) == (12 * 1000 + 12 * 128) * 2 * 8 * 64 * 2


def test_the_work_of_a_decode_step_by_hand():
    model = ModelSpec.load("qwen3-30b-a3b")
    attention = model.attention_kernel(1, 1024)
    weights = 2048 * 128 * (32 + 4 + 4 + 32) + 2 * 2048
    assert attention.hbm_bytes == 2 * weights + 1024 * 2 * 4 * 128 * 2
    assert attention.flops == 2 * weights + 4 * 32 * 128 * 1024
    experts = model.experts_kernel(8, 8)
    assert (experts.hbm_bytes, experts.flops) == (8 * model.expert_bytes, 2 * 8 * 3 * 2048 * 768)
    assert model.head_kernel(1).hbm_bytes == 2 * 2048 * 151936
    # everything that stays on the GPU is read once per token, but for the input embedding and the final norm
    read = 48 * (2 * weights + model.router_kernel(1).hbm_bytes) + model.head_kernel(1).hbm_bytes
    assert read == model.dense_bytes - 2 * 2048 * 151936 - 2 * 2048


CONFIGS = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "intermediate_size": 6144, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "vocab_size": 151936, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": False,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 1024,
        "vocab_size": 50304, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336,
        "vocab_size": 32000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
    "phi-3.5-moe": {
        "model_type": "phimoe", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2, "intermediate_size": 6400,
        "vocab_size": 32064, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": True,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32, "num_experts_per_tok": 4,
        "intermediate_size": 2880, "sliding_window": 128, "vocab_size": 201088, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408, "intermediate_size": 10944, "first_k_dense_replace": 1, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 102400,
        "torch_dtype": "bfloat16",
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe", "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "intermediate_size": 5632, "decoder_sparse_step": 1,
        "vocab_size": 151936, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hugging_face_config_gives_the_same_model(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS[name]))
    theirs, ours = (ModelSpec.load(each).model_dump(exclude={"name", "source"}) for each in (str(path), name))
    assert theirs == ours


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"model_type": "llama"}', "'llama' is not a known architecture"),
        ('{"model_type": "olmoe"}', "num_attention_heads is missing"),
        (json.dumps(CONFIGS["olmoe-1b-7b"] | {"num_experts_per_tok": 65}), "top_k 65 is more than the 64 experts"),
        (json.dumps(CONFIGS["olmoe-1b-7b"] | {"hidden_size": "wide"}), "wrong kind"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(content, rule, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        ModelSpec.load(str(path))
    message = str(refused.value)
    assert str(path) in message
    assert rule in message
    assert "\n" not in message
