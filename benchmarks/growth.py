"""How the cost grows: of a run with tokens, layers and cache size, of a sweep with its runs. Drawn as a PNG."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.devices import TRACE
from benchmarks.made_up import write_model, write_trace
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.window import recorded_decisions

TOKENS = (96, 192, 384, 768, 1536)
LAYERS = (8, 16, 32, 64)
CACHES = (0.05, 0.1, 0.25, 0.5, 0.75)
RUNS = (1, 2, 4, 8, 16)
POLICIES = ("lru", "least-stale")
"""One that is compiled, where numba is there, and one that takes the loop in Python."""


def seconds(
    policy: str, tokens: int, cache_fraction: float, runs: int, trace: Path = TRACE, model: str = "qwen3-30b-a3b"
) -> float:
    """Processor time of runs that differ in the link's rate alone, as in a sweep over hardware."""
    recorded_decisions.cache_clear()
    start = time.process_time()
    for number in range(runs):
        simulate(
            RunConfig(
                trace=trace, model=model, hardware="rtx-a6000", policy=policy, context_tokens=1024,
                cache_fraction=cache_fraction, warmup_tokens=0, measured_tokens=tokens, interval=False,
                hardware_overrides={"link_bytes_per_s": 10e9 + number * 1e9},
            )
        )
    return time.process_time() - start


def measure() -> dict[str, dict[str, list[float]]]:
    """Seconds by what grows and by policy, the better of two: the first knows the offline optimum of no size yet."""
    found: dict[str, dict[str, list[float]]] = {"tokens": {}, "layers": {}, "cache": {}, "runs": {}}
    for policy in POLICIES:
        for what, given in (
            ("tokens", [(tokens, 0.25, 1) for tokens in TOKENS]),
            ("cache", [(256, cache, 1) for cache in CACHES]),
            ("runs", [(256, 0.25, runs) for runs in RUNS]),
        ):
            found[what][policy] = [
                min(seconds(policy, tokens, cache, runs) for _ in range(2)) for tokens, cache, runs in given
            ]
        found["layers"][policy] = [by_layers(policy, layers) for layers in LAYERS]
    return found


def by_layers(policy: str, layers: int) -> float:
    """Seconds of a run over a made-up trace of 64 experts a layer, four of them chosen."""
    shape = {"layers": layers, "experts": 64, "top_k": 4}
    with TemporaryDirectory() as folder:
        trace, model = Path(folder) / "trace.safetensors", Path(folder) / "model.yaml"
        write_trace(trace, 512, **shape)
        write_model(model, **shape)
        return min(seconds(policy, 512, 0.25, 1, trace, str(model)) for _ in range(2))


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Four panels: cost over tokens, layers, cache size, runs."""
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    labels = {
        "tokens": "decoded tokens", "layers": "layers", "cache": "share of experts with a slot",
        "runs": "runs on other links",
    }
    grown = {"tokens": TOKENS, "layers": LAYERS, "cache": CACHES, "runs": RUNS}
    for panel, (what, values) in zip(panels, grown.items(), strict=True):
        for policy in POLICIES:
            panel.plot(values, found[what][policy], marker="o", label=policy)
        panel.set_xlabel(labels[what])
        panel.set_ylabel("processor time, s")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
