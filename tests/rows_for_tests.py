"""Whole rows of one configuration under two devices, and the recordings that they are compared on."""

from pathlib import Path

import pytest

from moesim.compiled import jit
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.trace import Trace
from moesim.trace_import import import_trace

SHIPPED = Path(__file__).parents[1] / "traces"
SHARED = Path(__file__).parents[2] / "shared" / "traces"
RECORDINGS = {
    "reference-16x64": (SHIPPED / "reference-16x64.safetensors", "olmoe-1b-7b"),
    "reference-16x64-scores": (SHIPPED / "reference-16x64-scores.safetensors", "olmoe-1b-7b"),
    "reference-48x128": (SHIPPED / "reference-48x128.safetensors", "qwen3-30b-a3b"),
    "reference-48x128-scores": (SHIPPED / "reference-48x128-scores.safetensors", "qwen3-30b-a3b"),
    "olmoe": (SHARED / "nvmoe" / "olmoe-all.tokens.jsonl", "olmoe-1b-7b"),
    "deepseek-v2-lite": (SHARED / "nvmoe" / "dsv2lite-all.tokens.jsonl", "deepseek-v2-lite"),
    "gpt-oss-120b": (SHARED / "nvmoe" / "gptoss-all.tokens.jsonl", "gpt-oss-120b"),
    "gpt-oss-20b": (SHARED / "gpt-oss-20b" / "gptoss20b_decode_experts.npz", "gpt-oss-20b"),
}
TELLS_THE_DEVICE = ("device", "configuration", "run_hash")


def rows(**configuration):
    """What a configuration gives, less what names the device: in SimPy, by the loop on FastGPU, and compiled."""
    found = []
    ways = [("simulated", False), ("fast", False)]
    if jit.AVAILABLE and configuration["policy"].startswith(("lru", "on-demand", "prefetch-and-refetch")):
        ways.append(("fast", True))
    for device, compiler in ways:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jit, "AVAILABLE", compiler)
            row = simulate(RunConfig(device=device, **configuration)).row()
        assert row["device"] == device
        found.append({name: value for name, value in row.items() if name not in TELLS_THE_DEVICE})
    return found


def five_hundred_tokens(name, folder):
    """The first 500 tokens of a trace, or all that it has, and the model that it was routed like."""
    path, model = RECORDINGS[name]
    if not path.exists():
        pytest.skip(f"{path.name} is not part of the repository")
    trace = Trace.load(path) if path.suffix == ".safetensors" else import_trace(path)
    short = folder / f"{name}.safetensors"
    trace.slice(0, min(500, trace.tokens)).save(short)
    return short, model
