"""How models, settings and reasons are called for people; policies and time classes as in moesim's report."""

import re

from hw_validate.comparison import Row
from moesim.report.words import percent, policy_words

MODELS = {
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
    "olmoe-1b-7b": "OLMoE-1B-7B",
    "mixtral-8x7b": "Mixtral-8x7B",
    "deepseek-v2-lite": "DeepSeek-V2-Lite",
    "gpt-oss-20b": "GPT-OSS-20B",
    "gpt-oss-120b": "GPT-OSS-120B",
    "phi-3.5-moe": "Phi-3.5-MoE",
    "qwen1.5-moe-a2.7b": "Qwen1.5-MoE-A2.7B",
}

THROTTLE_REASONS = {
    "sw_power_cap": "power cap",
    "hw_slowdown": "hardware slowdown",
    "sw_thermal_slowdown": "too hot (driver)",
    "hw_thermal_slowdown": "too hot (hardware)",
    "hw_power_brake_slowdown": "external power brake",
    "sync_boost": "clocks tied to another GPU's",
}
"""NVML's names of what holds the clocks down."""


def model_words(model: str) -> str:
    """A model as its makers write it; unknown ones as they are named in configs/models."""
    return MODELS.get(model, model)


def throttle_words(reason: str) -> str:
    """Why the clocks were held down."""
    return THROTTLE_REASONS.get(reason, spaced(reason))


def without_channel(policy: str) -> str:
    """A policy without the name of a synthetic trace's predictions: the page calls such a trace synthetic anyway."""
    return re.sub(r"\[predictor=synthetic[^\]]*\]$", "", policy)


def spaced(name: str) -> str:
    """`copy-rate_of` as "copy rate of": for names that other parts of hw_validate give."""
    return re.sub(r"[-_]+", " ", name).strip()


def setting_words(phase: object, batch_tokens: object) -> str:
    """The phase and, where it says something, the batch: "decode, batch 4"."""
    return "prefill" if phase == "prefill" else f"{phase}, batch {batch_tokens}"


def cell_words(row: Row) -> str:
    """A cell in one line."""
    return (
        f"{model_words(row['model'])}, {policy_words(row['policy'])}, cache {percent(row['cache_fraction'])}, "
        f"{setting_words(row['phase'], row['batch_tokens'])}"
    )


def signed_percent(fraction: float) -> str:
    """An error with its sign: "−1.2 %"."""
    shown = f"{100 * fraction:+.1f} %".replace("-", "−")
    return shown.lstrip("+−") if shown in ("+0.0 %", "−0.0 %") else shown


def two_decimals(fraction: float) -> str:
    """The size of an error: "1.20 %"."""
    return f"{100 * fraction:.2f} %"


def file_words(name: str) -> str:
    """A name as part of a file name: nothing that a file system or a shell would misread."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "unnamed"
