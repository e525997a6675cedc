"""A trace of any length and depth with random routing, and a model of its shape, where only counts and sizes matter."""

from pathlib import Path

import numpy as np
import yaml

from moesim.trace_file import write_file
from moesim.trace_metadata import TraceMetadata

STRETCH = 10_000
"""Rows that are drawn; a longer trace repeats them, so that writing it takes no memory."""


def write_trace(path: Path, rows: int, layers: int, experts: int, top_k: int) -> None:
    """`rows` decoded tokens of one request: at most `STRETCH`, or a multiple of it."""
    random = np.random.default_rng(0)
    drawn = min(rows, STRETCH)
    chosen = random.random((drawn, layers, experts)).argsort(-1)[..., :top_k].astype(np.uint8)
    weights = -np.sort(-random.random((drawn, layers, top_k)), -1).astype(np.float16)
    row = np.arange(rows, dtype=np.uint32)
    metadata = TraceMetadata(
        name=f"{rows} rows of {layers} layers", model="made up", layers=layers, experts=experts, top_k=top_k,
        moe_layers=list(range(layers)), predictors={}, dataset="none", tokenizer="none", decoding="unknown",
        recorder="benchmarks", recorder_version="0", licence="Apache-2.0", source="made up",
    )
    write_file(path, metadata.to_json(), {
        "experts": [chosen] * (rows // drawn), "weights": [weights] * (rows // drawn), "step": [row],
        "request": [np.zeros(rows, np.uint32)], "position": [row], "phase": [np.ones(rows, np.uint8)],
    })


def write_model(path: Path, layers: int, experts: int, top_k: int) -> None:
    """A small model with that routing."""
    path.write_text(yaml.safe_dump({
        "name": "made up", "source": "made up", "layers": layers, "experts": experts, "top_k": top_k, "hidden": 512,
        "expert_intermediate": 256, "heads": 8, "kv_heads": 8, "head_size": 64, "vocabulary": 1024,
    }))
