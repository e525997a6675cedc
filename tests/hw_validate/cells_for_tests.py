"""Validation folders of made-up numbers that hang together, for tests of comparison and report."""

import numpy as np

from hw_validate.measurement import (
    Cell,
    Limit,
    Limits,
    MachineFacts,
    Measurement,
    Slice,
    Telemetry,
    World,
    save,
)

MACHINE = MachineFacts(
    device="cuda",
    gpu="NVIDIA H200",
    driver="580.1",
    cuda="13.0",
    torch="2.11",
    operating_system="Linux 6.8",
    processor="Xeon",
    processors=16,
    memory_bytes=128 * 2**30,
    gpu_memory_bytes=139 * 2**30,
    link="PCIe 5 x16",
    measured_at="2026-01-01T00:00:00Z",
)
LAYERS = {"qwen3-30b-a3b": (48, 48), "olmoe-1b-7b": (16, 16), "mixtral-8x7b": (8, 32)}
LOSSY = ("speculate-and-execute", "resident-execute")


def steps(mean_ms, spread=0.01, count=128, seed=0):
    """Step times whose mean is `mean_ms` exactly to the nanosecond's rounding."""
    noise = np.random.default_rng(seed).normal(0, spread * mean_ms * 1e6, count)
    return [round(mean_ms * 1e6 + each) for each in noise - noise.mean()]


def world(step_ns, classes=True, **more):
    mean = sum(step_ns) / len(step_ns)
    shares = {"attention": 0.1, "experts": 0.1, "exposed_copy": 0.7, "host": 0.06, "idle": 0.04}
    parts = {f"{name}_ns": share * mean for name, share in shares.items()} if classes else {}
    counts = {"hits": 3000, "misses": 1000, "bytes_copied": 9_437_184_000}
    return World(step_ns=step_ns, **counts | parts | more)


def measurement(
    policy="lru", cache=0.25, measured_ms=40.0, simulated_ms=40.4, model="olmoe-1b-7b", phase="decode", batch=1,
    spread=0.01, count=128, seed=0, **more,
):
    layers, layers_of_model = LAYERS.get(model, (16, 16))
    cell = Cell(
        model=model, layers=layers, layers_of_model=layers_of_model, trace=f"{model} trace",
        synthetic=model == "mixtral-8x7b", policy=policy, cache_fraction=cache, batch_tokens=batch, context_tokens=1024,
        warmup_steps=64, measured_steps=count, phase=phase,
    )
    values = {
        "cell": cell,
        "measured": world(steps(measured_ms, spread, count, seed)),
        "simulated": world([round(simulated_ms * 1e6)] * count),
        "lossless": policy not in LOSSY,
        "timing_dependent": False,
        "executed": 16384,
        "executed_differently": 0,
        "decisions_compared": 20000,
        "decisions_different": 0,
        "telemetry": Telemetry(
            samples=50, power_mean_w=250.0, power_max_w=300.0, energy_j=250.0 * measured_ms / 1e3 * count,
            sm_clock_mean_mhz=1900.0, sm_clock_min_mhz=1800.0,
        ),
        "output_sha256": f"{model}{phase}{batch}" if policy not in LOSSY else f"{policy}{cache}",
    }
    return Measurement(**values | more)


def folder_of(folder, measurements, **files):
    """Write a validation folder; `files` are limits and timelines."""
    (folder / "cells").mkdir(parents=True)
    save(MACHINE, folder / "machine.json")
    for each in measurements:
        save(each, folder / "cells" / f"{each.cell.name}.json")
    for name, value in files.items():
        save(value, folder / f"{name}.json")
    return folder


BASE_MS = {"qwen3-30b-a3b": 80.0, "olmoe-1b-7b": 30.0, "mixtral-8x7b": 110.0}
SPEED = {
    "on-demand": 1.0, "lru": 0.98, "least-stale": 1.03, "speculate-and-execute": 0.88, "prefetch-and-refetch": 0.97,
    "resident-execute": 0.86,
}


def whole_grid():
    """The grid of a full validation: three models, all policies and cache sizes, batches, prefill."""
    random = np.random.default_rng(7)
    cells = []

    def add(model, policy, cache, phase="decode", batch=1):
        count = 32 if model == "mixtral-8x7b" else 16 if batch > 1 else 4 if phase == "prefill" else 128
        mean = BASE_MS[model] * SPEED[policy] * (1 - 0.85 * cache) * batch**0.8 * (12 if phase == "prefill" else 1)
        error = 1 + 0.02 * random.standard_normal()
        cells.append(measurement(
            policy, cache, mean, mean * error, model, phase, batch, spread=0.04, count=count, seed=len(cells),
            simulated=world([round(mean * error * 1e6)] * count, exposed_copy_ns=0.7 * mean * error * 1e6 - 4e5),
        ))

    for model in BASE_MS:
        for policy in ("on-demand", "speculate-and-execute", "prefetch-and-refetch"):
            add(model, policy, 0.0)
        for cache in (0.1, 0.25, 0.5):
            for policy in ("lru", "least-stale", "speculate-and-execute", "prefetch-and-refetch", "resident-execute"):
                add(model, policy, cache)
        add(model, "on-demand", 0.0, "prefill")
    for batch in (4, 16):
        for policy, cache in (("on-demand", 0.0), ("speculate-and-execute", 0.0), ("lru", 0.25)):
            add("olmoe-1b-7b", policy, cache, batch=batch)
    return cells


def token(cell, world_name, layers=6, scale=1.0, copies=4):
    """A token's timeline: per layer attention, read-back, copies in a row, experts."""
    slices, now = [], 0

    def add(track, name, took, layer, expert=-1):
        nonlocal now
        end = now + round(took * scale)
        slices.append(Slice(
            cell=cell, world=world_name, track=track, name=name, layer=layer, expert=expert, start_ns=now, end_ns=end,
        ))
        now = end

    for layer in range(layers):
        add("compute", "attention", 60_000, layer)
        add("host", "read back", 20_000, layer)
        for expert in range(copies):
            add("copies", "copy", 180_000, layer, expert)
        add("compute", "experts", 50_000, layer)
    return slices


def limits():
    return Limits(
        limits=[
            Limit(name="copies", what="copies of experts against the link's large-copy peak", measured=54.1e9,
                  bound=55.0e9, unit="bytes/s", ratio=54.1 / 55.0, target=0.95),
            Limit(name="on-demand", what="on demand, no cache, against bytes / bandwidth + compute", measured=71.4e6,
                  bound=66.0e6, unit="ns", ratio=71.4 / 66.0, target=1.05),
        ],
        baselines={"on-demand": 82.9e6, "speculate-and-execute": 71.1e6},
        engine={"on-demand": 70.0e6, "speculate-and-execute": 66.5e6},
        baseline_model="qwen3-30b-a3b",
    )
