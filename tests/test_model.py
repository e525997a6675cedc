"""Models against the figures that their makers and papers publish, and against transformers' own modules."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    "olmoe-1b-7b": 12.58, "mixtral-8x7b": 352.3, "qwen1.5-moe-a2.7b": 17.30, "phi-3.5-moe": 157.3,
    "qwen3-30b-a3b": 9.437,
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
    # three matrices of 2880 x 2880 at 4.25 bits, and biases of 2 x 2880 + 2880 numbers in 16 bits
    assert model.expert_bytes == 3 * 2880 * 2880 * 17 // 32 + 3 * 2880 * 2
    assert wide.expert_bytes == (3 * 2880 * 2880 + 3 * 2880) * 2
    assert model.dense_bytes == wide.dense_bytes


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 131_072))
def test_more_tokens_experts_or_context_are_never_less_work(tokens, experts, context_tokens):
    tokens = min(tokens, context_tokens)  # a context includes the tokens of the step
    for name in ("qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite"):
        model = ModelSpec.load(name)
        for less, more in (
            (model.attention_kernel(tokens, context_tokens), model.attention_kernel(tokens + 1, context_tokens + 1)),
            (model.attention_kernel(1, context_tokens), model.attention_kernel(1, context_tokens + 1)),
            (model.experts_kernel(experts, tokens), model.experts_kernel(experts + 1, tokens + 1)),
            (model.head_kernel(tokens), model.head_kernel(tokens + 1)),
        ):
            assert less.flops <= more.flops
            assert less.hbm_bytes <= more.hbm_bytes
        assert model.kv_bytes(context_tokens) <= model.kv_bytes(context_tokens + 1)


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


@pytest.mark.parametrize(("tokens", "context_tokens"), [(1, 1), (1, 500), (300, 300), (40, 300), (128, 129)])
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gpt-oss-20b"])
def test_attention_counts_every_key_that_a_token_sees(name, tokens, context_tokens):
    model = ModelSpec.load(name)
    keys = sum(
        min(position, model.window_tokens if layer < model.windowed_layers else position)
        for layer in range(model.layers)
        for position in range(context_tokens - tokens + 1, context_tokens + 1)
    )
    weights = model.attention_weights + 2 * model.hidden
    flops = 2 * weights * tokens + 4 * model.heads * model.head_size * keys / model.layers
    assert model.attention_kernel(tokens, context_tokens).flops == pytest.approx(flops, abs=1)


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
    "switch-base-128": {
        "model_type": "switch_transformers", "num_layers": 12, "num_decoder_layers": 12, "num_sparse_encoder_layers": 6,
        "num_sparse_decoder_layers": 6, "num_experts": 128, "d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12,
        "vocab_size": 32128, "tie_word_embeddings": True,
    },
}
CONFIGS["gpt-oss-120b"] = CONFIGS["gpt-oss-20b"] | {"num_hidden_layers": 36, "num_local_experts": 128}
CONFIGS["switch-base-256"] = CONFIGS["switch-base-128"] | {"num_experts": 256}


@pytest.fixture(scope="module")
def transformers_modules():
    """transformers' own module of a config, without memory for its weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def build(config):
        kind = config["model_type"]
        # the quantised tensors are packed, and so is a low-rank query that the model does not have
        rest = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
        if kind == "deepseek_v2":
            rest["q_lora_rank"] = None
        head = transformers.AutoModelForSeq2SeqLM if "d_kv" in rest else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            return head.from_config(transformers.CONFIG_MAPPING[kind](**rest))

    return build


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_module_that_transformers_builds(name, transformers_modules):
    model = ModelSpec.load(name)
    parameters = dict(transformers_modules(CONFIGS[name]).named_parameters())
    routed = sum(weight.numel() for key, weight in parameters.items() if ".experts." in key)
    assert routed == len(model.moe_layers) * model.experts * model.expert_weights
    everything = sum(weight.numel() for weight in parameters.values())
    if name.startswith("switch"):  # what the file says is left out: cross-attention of the decoder
        everything -= sum(weight.numel() for key, weight in parameters.items() if "EncDecAttention" in key)
    else:  # biases of one layer are too small to show in the whole
        attention = sum(
            weight.numel()
            for key, weight in parameters.items()
            if ".layers.1.self_attn." in key and "_proj" in key and not key.endswith("o_proj.bias")
        )
        assert attention == model.attention_weights
    assert model.weights == pytest.approx(everything, rel=2e-5)


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
        (
            json.dumps(CONFIGS["olmoe-1b-7b"] | {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            "quant_method = 'gptq': only mxfp4 is known",
        ),
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


def test_compressed_queries_of_the_larger_deepseek_v2(tmp_path):
    # config.json of deepseek-ai/DeepSeek-V2: 236 B parameters (arXiv 2405.04434, section 1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["deepseek-v2-lite"] | {
        "num_hidden_layers": 60, "hidden_size": 5120, "num_attention_heads": 128, "num_key_value_heads": 128,
        "n_routed_experts": 160, "moe_intermediate_size": 1536, "intermediate_size": 12288, "q_lora_rank": 1536,
    }))
    assert ModelSpec.load(str(path)).weights / 1e9 == pytest.approx(235.7, rel=0.001)


def test_the_first_layers_keep_what_they_have_of_dense_layers_and_windows():
    whole = ModelSpec.load("deepseek-v2-lite")
    part = whole.first_layers(5)
    assert (part.layers, part.dense_layers, part.moe_layers) == (5, [0], [1, 2, 3, 4])
    assert whole.first_layers(1).moe_layers == []
    deep = whole.model_copy(update={"dense_layers": [0, 20]}).first_layers(5)
    assert deep.dense_layers == [0]
    windows = ModelSpec.load("gpt-oss-20b")
    assert (windows.layers, windows.windowed_layers) == (24, 12)
    assert windows.first_layers(6).windowed_layers == 3
