"""The host's own share: an expert computed on the CPU, and its memory's bandwidth with and without copies beside it."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag
from time import perf_counter_ns

import numpy as np
import torch
from torch.nn import functional

from hw_validate.calibrate.link import LinkBench
from hw_validate.calibrate.samples import quantity
from moesim.model import ModelSpec
from moesim.quantity import Quantity

TOKENS = (1, 4, 16)
WEIGHT_BYTES = 700_000_000
"""Of different experts in turn: more than any cache holds, so that weights come from memory."""


def cpu_expert_ns(model: ModelSpec, repetitions: int) -> dict[str, Quantity]:
    """Time of one expert on the CPU by tokens, bfloat16, with all of torch's threads."""
    experts = max(2, min(64, WEIGHT_BYTES // model.expert_bytes))
    shape = (experts, model.expert_intermediate, model.hidden)
    gate, up, down = (torch.full(shape, 0.02, dtype=torch.bfloat16) for _ in range(3))
    found = {}
    for tokens in TOKENS:
        x = torch.ones(tokens, model.hidden, dtype=torch.bfloat16)
        readings = []
        for _ in range(repetitions + 1):
            begin = perf_counter_ns()
            for expert in range(experts):
                (functional.silu(x @ gate[expert].T) * (x @ up[expert].T)) @ down[expert]
            readings.append((perf_counter_ns() - begin) / experts)
        found[f"cpu_expert_of_{model.name}_{tokens}_tokens_ns"] = quantity(
            readings[1:],
            f"torch on {torch.get_num_threads()} threads, {experts} experts in turn, {repetitions} readings",
        )
    return found


def memory_bandwidth(bench: LinkBench, threads: int, seconds: float = 0.3) -> dict[str, Quantity]:
    """Bytes read and written per second by copying threads, alone and while the GPU copies from the same memory."""
    found = {}
    for name, beside in (("host_memory_bytes_per_s", False), ("host_memory_under_copies_bytes_per_s", True)):
        readings = []
        for _ in range(3):
            stop = Flag()
            with ThreadPoolExecutor(threads + 1) as pool:
                copying = pool.submit(_keep_copying, bench, stop) if beside else None
                moved = [pool.submit(moved_bytes, seconds) for _ in range(threads)]
                begin = perf_counter_ns()
                total = sum(each.result() for each in moved)
                readings.append(total * 1e9 / (perf_counter_ns() - begin))
                stop.set()
                if copying is not None:
                    copying.result()
        how = f"{threads} threads of numpy.copyto, bytes read plus bytes written, 3 readings"
        found[name] = quantity(readings, how)
    return found


def moved_bytes(seconds: float) -> int:
    """Bytes read and written by one thread that copies for so many seconds."""
    source, target = np.ones(1 << 26, dtype=np.uint8), np.empty(1 << 26, dtype=np.uint8)
    end, moved = perf_counter_ns() + int(seconds * 1e9), 0
    while perf_counter_ns() < end:
        np.copyto(target, source)
        moved += 2 * source.nbytes
    return moved


def _keep_copying(bench: LinkBench, stop: Flag) -> None:
    while not stop.is_set():
        bench.queued_ns(9_437_184, records=False)
