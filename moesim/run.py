"""One run: a configuration in, a Result out.

Everything that a run depends on is in its `RunConfig` and in the files that it names; their hashes go into the row.
The centre of the hardware's figures gives the metrics, their two ends the interval of the TPOT.
"""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import moesim
from moesim.one_replay import Timed, replay_once
from moesim.prepare import Prepared, prepare
from moesim.result import SCHEMA, Value
from moesim.run_config import RunConfig, identity, run_hash
from moesim.run_slots import draft_bytes, host_slots, slot_bytes, versions_of
from moesim.timeline import Timeline
from moesim.window import trace_hash


@dataclass(frozen=True)
class Result:
    """A run's metrics, one value per column of `SCHEMA`, and its timeline if one was kept."""

    values: dict[str, Value]
    timeline: Timeline | None
    last_token_ns: tuple[int, int]
    """When the last decoded token began and ended: a steady one to look at on the timeline."""

    def row(self) -> dict[str, Value]:
        """All columns of `SCHEMA`, in that order."""
        return {name: self.values.get(name) for name in SCHEMA.names}


@contextmanager
def paused_collector() -> Iterator[None]:
    """No search for reference cycles meanwhile: a replay makes none, and looking costs a quarter of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@paused_collector()
def simulate(config: RunConfig, *, timeline: bool = False) -> Result:
    """Run a configuration. Raises InputError (one line) when its inputs do not fit together."""
    run = prepare(config, timeline=timeline)
    drawing = Timeline(run.trace.n_experts, layers=run.trace.layers) if timeline else None
    timed = [replay_once(run, run.hardware.at("centre"), drawing)]
    values = _metrics(run, timed[0])
    if config.interval:
        for name in ("fast", "slow"):
            timed.append(replay_once(run, run.hardware.at(name)))
            values[f"tpot_{name}_ns"] = timed[-1].tally.tpot_mean_ns
    sources = frozenset().union(*(each.kernel_sources for each in timed))
    values |= _inputs(run) | {
        "kernel_times": " and ".join(sorted(sources)),
        "configuration": json.dumps(identity(config), sort_keys=True),
        "run_hash": run_hash(config),
    }
    return Result(values, drawing, timed[0].tally.last_token_ns)


def _metrics(run: Prepared, timed: Timed) -> dict[str, Value]:
    """What was counted and timed, and the memory that it took."""
    hardware, model, window, tally = run.hardware.at("centre"), run.model, run.window, timed.tally
    versions = versions_of(run.policy, window.capacity, model)
    values = tally.columns(versions.first_bytes, versions.second_bytes, hardware.link_bytes_per_s)
    kv_bytes = model.kv_bytes(run.config.context_tokens or tally.longest_context_tokens, tally.sequences)
    if run.serving is not None and timed.scheduler is not None:
        values |= run.serving.columns() | timed.scheduler.columns()
        kv_bytes = run.serving.kv_bytes_held(timed.scheduler)
    draft = draft_bytes(run.policy, model)
    vram = model.dense_bytes + kv_bytes + slot_bytes(run.slots, window.capacity, run.policy, model) + draft
    in_parts = window.capacity.bottom_slots > 0
    return values | {
        "copies_low": 0 if in_parts else values["copies_low"],
        "copies_bottom": values["copies_low"] if in_parts else 0,
        "draft_bytes": draft,
        "vram_bytes": vram,
        "vram_free_bytes": hardware.memory_bytes - vram,
        "feasible": vram <= hardware.memory_bytes,
    }


def _inputs(run: Prepared) -> dict[str, Value]:
    """What was run, and with how many slots of which size."""
    config, trace, model, policy, window = run.config, run.trace, run.model, run.policy, run.window
    capacity = window.capacity
    low_slots, bottom_slots = capacity.total_low(trace.layers), capacity.bottom_slots
    low_bytes = versions_of(policy, capacity, model).second_bytes
    return {
        "grid": config.grid,
        "policy": policy.name,
        "model": model.name,
        "hardware": run.hardware.name,
        "trace": trace.metadata.name,
        "device": run.device,
        "engine": run.engine.name,
        "cache_fraction": {"none": 0.0, "all": 1.0, "any": config.cache_fraction}[policy.spec.cache],
        "per_layer": capacity.per_layer,
        "host_cache_fraction": config.host_cache_fraction,
        "host_bytes": host_slots(config, model) * model.expert_bytes,
        "context_tokens": config.context_tokens,
        "hardware_overrides": json.dumps(config.hardware_overrides, sort_keys=True),
        "link_bytes_per_s": round(run.hardware.at("centre").link_bytes_per_s),
        "lossless": policy.lossless,
        "bound": policy.spec.bound,
        "open_loop": policy.open_loop,
        "clocked": window.clocked or run.engine.drops_guesses,
        "optimum_known": window.optimum_known,
        "synthetic": trace.metadata.synthetic,
        "slots": 0 if capacity.workspace else run.slots - low_slots - bottom_slots,
        "expert_bytes": model.expert_bytes,
        "low_precision": policy.on_miss.low,
        "slots_low": 0 if capacity.workspace else low_slots,
        "expert_low_bytes": None if policy.on_miss.low is None else low_bytes,
        "top_share": capacity.top_share,
        "slots_bottom": bottom_slots,
        "trace_hash": trace_hash(config.trace),
        "moesim_version": moesim.__version__,
    }
