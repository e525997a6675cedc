"""A small sweep in a folder of its own: a made trace, a made model, a shipped machine and engine."""

from pathlib import Path
from textwrap import dedent

from tests.traces_for_tests import random_trace

MODEL = """
name: tiny
source: made for tests
layers: 3
experts: 8
top_k: 2
hidden: 512
expert_intermediate: 256
heads: 4
kv_heads: 4
head_size: 64
vocabulary: 1000
"""

SWEEP = """
name: tiny
title: A tiny sweep
trace: tiny.safetensors
model: ./tiny.yaml
hardware: rtx-a6000
warmup_tokens: 10
grids:
  policies:
    policy: [on-demand, lru, lfu, fifo, 'least-stale[key=cyclic]', speculate-and-execute, all-resident]
    cache: [0%, 50%, 0.5, 75%]
    context_tokens: 128
  links:
    policy: [lru, prefetch-and-refetch]
    cache: [10%, 60%]
    hardware.link_bytes_per_s: [6e9, 25e9, 54.9e9]
    interval: false
published:
  - {grid: policies, policy: lru, cache: 50%, tpot_ns: 1_000_000, source: made for tests}
timelines:
  - {policy: lru, cache: 50%, layers: [1, 2]}
device: simulated
"""
RUNS = 2 + 5 * 3 + 2 * 2 * 3
"""on-demand and all-resident stand once, 50% and 0.5 are one size."""


def write_sweep(folder: Path, text: str = SWEEP, tokens: int = 60) -> Path:
    """A sweep's file, with the trace and the model that it names beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tiny.safetensors").exists():
        random_trace(tokens=tokens, prompt=5).save(folder / "tiny.safetensors")
        (folder / "tiny.yaml").write_text(MODEL)
    path = folder / "sweep.yaml"
    path.write_text(dedent(text))
    return path

DIES = '''
import os, signal
from moesim.policies.evict.fifo import FIFO

class Dies(FIFO):
    """First in, first out, until the first eviction: what the kernel does to a process that takes too much memory."""
    def on_evict(self, expert):
        os.kill(os.getpid(), signal.SIGKILL)
'''
LETHAL_SWEEP = """
name: lethal
trace: tiny.safetensors
model: ./tiny.yaml
hardware: rtx-a6000
warmup_tokens: 10
interval: false
grids:
  all:
    policy: [lru, '{folder}/dies.py:Dies', fifo]
    cache: 50%
    context_tokens: 128
  more: {{policy: lfu, cache: 50%}}
"""
"""The second of its four runs kills whoever makes it."""
