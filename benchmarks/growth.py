"""How the cost grows: of a run with its tokens and its cache size, of a sweep with its runs. Drawn as a PNG."""

import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.devices import TRACE
from moesim.run import RunConfig, simulate
from moesim.window import recorded_decisions

TOKENS = (128, 256, 512, 1024, 2048)
CACHES = (0.05, 0.1, 0.25, 0.5, 0.75)
RUNS = (1, 2, 4, 8, 16)
POLICIES = ("lru", "least-stale")
"""One that is compiled, where numba is there, and one that takes the loop in Python."""


def seconds(policy: str, tokens: int, cache_fraction: float, runs: int) -> float:
    """Processor time of runs that differ in the link's rate alone, as in a sweep over hardware."""
    recorded_decisions.cache_clear()
    start = time.process_time()
    for number in range(runs):
        simulate(
            RunConfig(
                trace=TRACE, model="qwen3-30b-a3b", hardware="rtx-a6000", policy=policy, context_tokens=1024,
                cache_fraction=cache_fraction, warmup_tokens=0, measured_tokens=tokens, interval=False,
                hardware_overrides={"link_bytes_per_s": 10e9 + number * 1e9},
            )
        )
    return time.process_time() - start


def measure() -> dict[str, dict[str, list[float]]]:
    """Seconds by what grows and by policy. The offline optimum, which a sweep finds once per size, is known before."""
    found: dict[str, dict[str, list[float]]] = {"tokens": {}, "cache": {}, "runs": {}}
    for policy in POLICIES:
        for what, given in (
            ("tokens", [(tokens, 0.25, 1) for tokens in TOKENS]),
            ("cache", [(256, cache, 1) for cache in CACHES]),
            ("runs", [(256, 0.25, runs) for runs in RUNS]),
        ):
            found[what][policy] = []
            for tokens, cache, runs in given:
                seconds(policy, tokens, cache, 1)
                found[what][policy].append(seconds(policy, tokens, cache, runs))
    return found


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Three panels: cost over tokens, over cache size, over runs."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    labels = {"tokens": "decoded tokens", "cache": "share of experts with a slot", "runs": "runs on other links"}
    for panel, (what, values) in zip(panels, {"tokens": TOKENS, "cache": CACHES, "runs": RUNS}.items(), strict=True):
        for policy in POLICIES:
            panel.plot(values, found[what][policy], marker="o", label=policy)
        panel.set_xlabel(labels[what])
        panel.set_ylabel("processor time, s")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
