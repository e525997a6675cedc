"""A paper that nobody wrote, about a model that nobody trained: its claims' truth is known by counting."""

from pathlib import Path
from textwrap import dedent

from moesim.published.reproduce import Asked
from moesim.published.system import load_system
from moesim.published.traces import load_sources
from tests.sweeps_for_tests import MODEL
from tests.traces_for_tests import random_trace

TOKENS, LAYERS, TOP_K, WARMUP = 40, 3, 2, 10
ACCESSES = (TOKENS - WARMUP) * LAYERS * TOP_K
"""What is counted: on demand, every one is a miss; with every expert resident, a hit."""

SOURCES = """
quality: absent.quality.json
traces:
  tiny: {model: ./tiny.yaml, file: tiny.safetensors, words: made for tests}
  other: {model: ./tiny.yaml, file: other.safetensors, words: made for tests}
  elsewhere: {model: ./tiny.yaml, recording: elsewhere.jsonl, words: made for tests}
  drawn: {model: ./tiny.yaml, synthetic: {overlap: 0.4, busiest: 0.2, requests: 1}, words: made for tests}
"""

PAPER = """
title: A made-up system
source: nobody, 2026
setting: none.
traces: [tiny]
axes: {hardware: rtx-a6000, warmup_tokens: 10}
runs:
  on-demand: {policy: on-demand}
  resident: {policy: all-resident}
  sizes: {policy: lru, cache: [25%, 50%, 75%]}
recalls:
  foreseen: {predictor: residual+default-vectors, layers: [1, -1]}
claims:
"""


def claim(**given) -> str:
    """One claim in YAML's flow style: a count of misses that holds, but for what is given; None leaves a key out."""
    told = {
        "id": "x", "says": "It is so.", "source": "nowhere", "kind": "count", "metric": "misses", "of": "on-demand",
        "published": ACCESSES, "tolerance": "{because: exact}",
    } | given
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in told.items() if value is not None) + "}\n"


def asked(folder: Path, claims: str, paper: str = PAPER) -> Asked:
    """A system with these claims, and its traces, in a folder of its own."""
    (folder / "published").mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(MODEL)
    for seed, name in enumerate(("tiny", "other")):
        random_trace(tokens=TOKENS, seed=seed).save(folder / f"{name}.safetensors")
    sources_path = folder / "published-traces.yaml"
    sources_path.write_text(SOURCES.replace("./tiny.yaml", str(folder / "tiny.yaml")))
    path = folder / "published" / "made-up.yaml"
    path.write_text(dedent(paper) + claims)
    sources = load_sources(sources_path)
    return Asked({"made-up": (path, load_system(path, sources.traces))}, sources_path, sources)
