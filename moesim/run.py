"""One run: a configuration in, a Result out.

Everything that a run depends on is in its `RunConfig` and in the files that it names; their hashes go into the row.
The centre of the hardware's figures gives the metrics, their two ends the interval of the TPOT.
"""

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import nlargest
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import moesim
from moesim.catalogue import find
from moesim.decide import Capacity, Decider, Decision, run_without_clock, streams_whole_layers
from moesim.devices.simulated import SimulatedGPU
from moesim.engine import EngineSpec
from moesim.errors import ConfigError, TraceError
from moesim.events import DECODE, Step, UseList, steps
from moesim.hardware import Hardware, HardwareSpec
from moesim.model import ModelSpec
from moesim.policies.composition import Policy, parse, split_call
from moesim.replay import Decisions, Replay
from moesim.result import SCHEMA, Tally, Value
from moesim.timeline import Timeline
from moesim.trace import Trace

RECORDED_TOKENS = 16_384
"""Up to this many rows, decisions are kept in memory and timed again; beyond it each clock decides anew."""


class RunConfig(BaseModel):
    """What one run depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace: Path
    model: str
    hardware: str
    policy: str
    cache_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    per_layer: bool = False
    """Split the slots evenly over the layers instead of one shared pool."""
    engine: str = "yalis"
    context_tokens: int | None = Field(default=None, ge=1)
    """A constant KV length per decode step; None takes the trace's own positions."""
    warmup_tokens: int = Field(default=64, ge=0)
    measured_tokens: int | None = Field(default=None, ge=1)
    hardware_overrides: dict[str, float] = {}
    interval: bool = True
    """Also run the two ends of the hardware's ranges."""
    device: Literal["simulated"] = "simulated"
    grid: str = ""
    """Which grid of a sweep the run belongs to."""


def identity(config: RunConfig) -> dict[str, object]:
    """Everything that the run's outcome depends on, by content and not by place: equal identities, equal rows."""
    files = {
        "model": find("models", config.model),
        "hardware": find("hardware", config.hardware),
        "engine": find("engines", config.engine),
        "policy": find("policies", split_call(config.policy)[0]),
    }
    return {
        **config.model_dump(mode="json", exclude={"trace"}),
        "moesim": moesim.__version__,
        "trace_sha256": trace_hash(config.trace),
        **{f"{kind}_sha256": file_hash(path) for kind, path in files.items()},
    }


def run_hash(config: RunConfig) -> str:
    """A name for a run: the hash of its identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=256)
def file_hash(path: Path) -> str:
    """The hash of a small file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Result:
    """A run's metrics, one value per column of `SCHEMA`, and its timeline if one was kept."""

    values: dict[str, Value]
    timeline: Timeline | None

    def row(self) -> dict[str, Value]:
        """All columns of `SCHEMA`, in that order."""
        return {name: self.values.get(name) for name in SCHEMA.names}


@lru_cache(maxsize=4)
def load_trace(path: Path) -> Trace:
    """A trace, opened once per process."""
    return Trace.load(path)


@lru_cache(maxsize=4)
def trace_hash(path: Path) -> str:
    """The trace's content hash, computed once per process."""
    return load_trace(path).content_hash()


@lru_cache(maxsize=8)
def window_end(path: Path, decode_tokens: int | None) -> int:
    """The row behind which `decode_tokens` tokens have been decoded; a step is never torn."""
    trace = load_trace(path)
    if decode_tokens is None:
        return trace.tokens
    decoded = 0
    for step in steps(trace):
        if step.phase == DECODE:
            decoded += step.tokens
            if decoded >= decode_tokens:
                return int(step.rows.stop)
    return trace.tokens


def capacity_of(policy: Policy, config: RunConfig, model: ModelSpec, largest: tuple[int, int]) -> Capacity:
    """The slots of a run (the house's section 7). Raises ConfigError when they cannot hold one token's experts."""
    layers, experts = len(model.moe_layers), model.experts
    fraction = {"none": 0.0, "all": 1.0, "any": config.cache_fraction}[policy.spec.cache]
    if policy.spec.cache == "all":
        return Capacity(layers * experts, everything=True)
    if fraction == 0.0:
        return Capacity(sum(largest), workspace=True)
    # Written as a decimal, a fraction times a whole number must not lose a slot to binary rounding.
    slots = int(fraction * layers * experts + 1e-9)
    if config.per_layer:
        slots //= layers
    if slots < model.top_k:
        raise ConfigError(
            f"cache_fraction {config.cache_fraction:g} of {model.name} is {slots} slots"
            f"{' per layer' if config.per_layer else ''}, fewer than its top-k {model.top_k}: give 0 or more"
        )
    return Capacity(slots, per_layer=config.per_layer)


def check_shape(trace: Trace, model: ModelSpec, path: Path) -> None:
    """Raise TraceError when the trace was not routed like the model."""
    for what, got, expected in (
        ("MoE layers", trace.layers, len(model.moe_layers)),
        ("experts", trace.n_experts, model.experts),
        ("top-k", trace.top_k, model.top_k),
    ):
        if got != expected:
            raise TraceError(f"{path}: {what} {got} do not match model {model.name}: expected {expected}")


@lru_cache(maxsize=32)
def optimum_hits(window: "Window") -> list[tuple[int, ...]]:
    """Per event, which of the window's accesses (by number within the layer) offline-optimal eviction hits."""
    trace = load_trace(window.path)
    layers, experts = trace.layers, trace.n_experts
    decider = window.decider()
    hits = []
    for step in steps(trace, 0, window.stop):
        decider.begin(step)
        for layer in range(layers):
            decision = decider.decide(step, layer)
            missed = {copy.expert for wave in decision.waves for copy in wave.demand}
            accesses = decider.policy.route.accesses(step, layer)
            hits.append(tuple(e for e in accesses if layer * experts + e not in missed))
            decider.finish(layer)
    return hits


@lru_cache(maxsize=32)
def largest_events(path: Path, stop: int, stream_prefill: bool, policy: str) -> tuple[int, int]:
    """How many experts the two largest events of the window bring together.

    That is what the event accesses and what was foreseen for it, right or wrong; a whole layer where one is streamed.
    """
    trace, composed = load_trace(path), parse(policy)
    route, prefetch = composed.route, composed.prefetch
    largest = [0, 0]
    for step in steps(trace, 0, stop):
        if stream_prefill and streams_whole_layers(step, trace.n_experts):
            return trace.n_experts, trace.n_experts
        for layer in range(trace.layers):
            brought = set(route.accesses(step, layer))
            if prefetch.predicts(step, layer):
                brought.update(prefetch.wanted(step, layer))
            largest = nlargest(2, [*largest, len(brought)])
    return largest[0], largest[1]


class Recorded:
    """Decisions played back: they do not depend on the clock, so further clocks need not decide again."""

    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions: Iterator[Decision] = iter(decisions)

    def begin(self, step: Step) -> None:
        """Nothing to prepare."""

    def decide(self, step: Step, layer: int) -> Decision:
        """The next decision."""
        return next(self._decisions)

    def finish(self, layer: int) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class Window:
    """What decisions depend on, and nothing else: the rows, the policy and its slots."""

    path: Path
    stop: int
    policy: str
    capacity: Capacity
    largest: int
    stream_prefill: bool

    def decider(self) -> Decider:
        """The policy, with an empty cache."""
        trace, policy = load_trace(self.path), parse(self.policy)
        layers, experts, capacity = trace.layers, trace.n_experts, self.capacity
        future = optimum = None
        if policy.oracle:
            future = UseList(steps(trace, 0, self.stop), layers, experts, policy.route.accesses)
        elif not (capacity.workspace or capacity.everything):
            bound = replace(self, policy=f"belady[route={policy.route_text}]", stream_prefill=False)
            optimum = optimum_hits(bound)
        return Decider(
            policy, layers, experts, capacity, largest_event=self.largest, future=future, optimum=optimum,
            stream_prefill=self.stream_prefill,
        )


@lru_cache(maxsize=2)
def recorded_decisions(window: Window) -> list[Decision]:
    """The decisions of a window, made once for all the clocks that will time them."""
    return list(run_without_clock(window.decider(), steps(load_trace(window.path), 0, window.stop)))


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
    trace = load_trace(config.trace)
    model = ModelSpec.load(config.model)
    check_shape(trace, model, config.trace)
    spec = HardwareSpec.load(config.hardware).override(config.hardware_overrides)
    engine = EngineSpec.load(config.engine)
    policy = parse(config.policy)
    policy.check(trace.predicted)
    wanted = None if config.measured_tokens is None else config.warmup_tokens + config.measured_tokens
    stop = window_end(config.trace, wanted)
    stream = engine.prefill == "stream"
    largest = largest_events(config.trace, stop, stream, policy.name)
    capacity = capacity_of(policy, config, model, largest)
    window = Window(config.trace, stop, policy.name, capacity, largest[0], stream)
    drawing = Timeline(trace.n_experts) if timeline else None
    replayed = stop <= RECORDED_TOKENS
    slots = window.decider().slots

    def clock(hardware: Hardware, drawn: Timeline | None = None) -> Tally:
        decisions: Decisions = Recorded(recorded_decisions(window)) if replayed else window.decider()
        tally = Tally(config.warmup_tokens, lossless=policy.lossless, experts=trace.n_experts)
        device = SimulatedGPU(hardware, engine, drawn)
        device.run(
            Replay(
                steps(trace, 0, stop), decisions, device, model, engine, slots, tally.observe,
                config.context_tokens,
            ).program()
        )
        return tally

    hardware = spec.at("centre")
    tally = clock(hardware, drawing)
    values = tally.columns(model.expert_bytes, hardware.link_bytes_per_s)
    if config.interval:
        ends: tuple[Literal["fast"], Literal["slow"]] = ("fast", "slow")
        for end in ends:
            values[f"tpot_{end}_ns"] = clock(spec.at(end)).columns(
                model.expert_bytes, hardware.link_bytes_per_s
            )["tpot_mean_ns"]
    context = config.context_tokens or tally.longest_context_tokens
    vram = model.dense_bytes + model.kv_bytes(context, max(1, tally.sequences)) + slots * model.expert_bytes
    values |= {
        "grid": config.grid,
        "policy": policy.name,
        "model": model.name,
        "hardware": spec.name,
        "trace": trace.metadata.name,
        "device": config.device,
        "engine": engine.name,
        "cache_fraction": {"none": 0.0, "all": 1.0, "any": config.cache_fraction}[policy.spec.cache],
        "per_layer": capacity.per_layer,
        "context_tokens": config.context_tokens,
        "hardware_overrides": json.dumps(config.hardware_overrides, sort_keys=True),
        "link_bytes_per_s": round(hardware.link_bytes_per_s),
        "lossless": policy.lossless,
        "bound": policy.spec.bound,
        "open_loop": not policy.route.lossless,
        "synthetic": trace.metadata.synthetic,
        "feasible": vram <= hardware.memory_bytes,
        "slots": 0 if capacity.workspace else slots,
        "expert_bytes": model.expert_bytes,
        "vram_bytes": vram,
        "vram_free_bytes": hardware.memory_bytes - vram,
        "kernel_times": "measured" if hardware.kernel_table else "roofline",
        "trace_hash": trace_hash(config.trace),
        "configuration": json.dumps(identity(config), sort_keys=True),
        "run_hash": run_hash(config),
        "moesim_version": moesim.__version__,
    }
    return Result(values, drawing)
