"""The config.json of a Hugging Face checkpoint as the fields of a ModelSpec."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError, nearest


def shape_from_config(path: Path) -> dict[str, Any]:
    """Fields of `moesim.model.ModelSpec` for the model that a config.json describes.

    Raises:
        ConfigError: not JSON, an architecture that is not known here, or a field that is missing.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ConfigError(f"{path}: model_type {kind!r} is not a known architecture: {nearest(kind, ARCHITECTURES)}")
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if method not in (None, "mxfp4"):
        raise ConfigError(
            f"{path}: quantization_config.quant_method = {method!r}: only mxfp4 is known; "
            "write the model as YAML, with expert_precision"
        )
    try:
        shape = ARCHITECTURES[kind](config)
    except KeyError as error:
        raise ConfigError(f"{path}: {error.args[0]} is missing, which a {kind} config has") from None
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: a field of this {kind} config has a value of the wrong kind: {error}") from None
    name = str(config.get("_name_or_path") or path.parent.name or kind).rsplit("/", 1)[-1].lower()
    return {"name": name, "source": f"config.json of {name}", **shape}


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    precision = {"float32": "fp32", "float16": "fp16"}.get(dtype, "bf16")
    return {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_size": config.get("head_dim") or config["hidden_size"] // heads,
        "vocabulary": config["vocab_size"],
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "precision": precision,
        "expert_precision": precision,
    }


def _qwen_moe(config: Mapping[str, Any]) -> dict[str, Any]:
    sparse_step, only_mlp = config.get("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or [])
    dense = [
        layer for layer in range(config["num_hidden_layers"]) if layer in only_mlp or (layer + 1) % sparse_step != 0
    ]
    return {
        **_common(config),
        "experts": config.get("num_experts") or config["num_local_experts"],
        "top_k": config["num_experts_per_tok"],
        "expert_intermediate": config["moe_intermediate_size"],
        "shared_intermediate": config.get("shared_expert_intermediate_size", 0),
        "attention_bias": bool(config.get("attention_bias", config["model_type"] == "qwen2_moe")),
        **({"dense_layers": dense, "dense_intermediate": config["intermediate_size"]} if dense else {}),
    }


def _olmoe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_common(config),
        "experts": config["num_experts"],
        "top_k": config["num_experts_per_tok"],
        "expert_intermediate": config["intermediate_size"],
    }


def _mixtral(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_common(config),
        "experts": config["num_local_experts"],
        "top_k": config["num_experts_per_tok"],
        "expert_intermediate": config["intermediate_size"],
        "attention_bias": bool(config.get("attention_bias", False)),
    }


def _gpt_oss(config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = config.get("layer_types") or ["sliding_attention", "full_attention"] * (config["num_hidden_layers"] // 2)
    quantised = (config.get("quantization_config") or {}).get("quant_method") == "mxfp4"
    return {
        **_mixtral(config),
        "expert_bias": True,
        "attention_bias": True,
        "window_tokens": config["sliding_window"],
        "windowed_layers": sum(kind == "sliding_attention" for kind in kinds),
        **({"expert_precision": "mxfp4"} if quantised else {}),
    }


def _deepseek_v2(config: Mapping[str, Any]) -> dict[str, Any]:
    first, every = config["first_k_dense_replace"], config.get("moe_layer_freq", 1)
    dense = [layer for layer in range(config["num_hidden_layers"]) if layer < first or layer % every != 0]
    query_rank = config.get("q_lora_rank")
    return {
        **_common(config),
        "head_size": config["v_head_dim"],
        "experts": config["n_routed_experts"],
        "top_k": config["num_experts_per_tok"],
        "expert_intermediate": config["moe_intermediate_size"],
        "shared_intermediate": (config.get("n_shared_experts") or 0) * config["moe_intermediate_size"],
        "latent": {
            "kv_rank": config["kv_lora_rank"],
            "rope_size": config["qk_rope_head_dim"],
            "query_size": config["qk_nope_head_dim"],
            "value_size": config["v_head_dim"],
            **({"query_rank": query_rank} if query_rank is not None else {}),
        },
        **({"dense_layers": dense, "dense_intermediate": config["intermediate_size"]} if dense else {}),
    }


def _switch(config: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder and decoder, one after the other; every second layer of each is sparse (arXiv 2101.03961)."""
    stacks = (("num_layers", "num_sparse_encoder_layers"), ("num_decoder_layers", "num_sparse_decoder_layers"))
    dense: list[int] = []
    layers = 0
    for depth, sparse in stacks:
        step = config[depth] // config[sparse]
        dense += [layers + layer for layer in range(config[depth]) if step > 1 and layer % step != 1]
        layers += config[depth]
    return {
        "layers": layers,
        "dense_layers": dense,
        "experts": config["num_experts"],
        "top_k": 1,
        "hidden": config["d_model"],
        "expert_intermediate": config["d_ff"],
        "expert_matrices": 2,
        "dense_intermediate": config["d_ff"],
        "heads": config["num_heads"],
        "kv_heads": config["num_heads"],
        "head_size": config["d_kv"],
        "vocabulary": config["vocab_size"],
        "tied_embeddings": bool(config.get("tie_word_embeddings", True)),
        "precision": "fp32",
        "expert_precision": "fp32",
    }


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "qwen2_moe": _qwen_moe,
    "qwen3_moe": _qwen_moe,
    "olmoe": _olmoe,
    "mixtral": _mixtral,
    "phimoe": _mixtral,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek_v2,
    "switch_transformers": _switch,
}
