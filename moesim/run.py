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
from math import ceil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

import moesim
from moesim.capacity import Capacity, Memory
from moesim.catalogue import find
from moesim.compiled.run import CompiledRun, is_compiled
from moesim.cpu_experts import CpuExperts
from moesim.decide_parts import check_parts
from moesim.device_choice import Asked, Chosen, choose_device, new_device
from moesim.devices.copy_queues import SimulatedGPUWithCopyThread
from moesim.devices.simulated_cpu import SimulatedGPUAndCPU
from moesim.draft.costs import cycle_costs
from moesim.draft.plan import governed_lengths
from moesim.engine import EngineSpec
from moesim.errors import ConfigError, TraceError
from moesim.hardware import Hardware, HardwareSpec
from moesim.host_tier import HostTier
from moesim.late_guesses import LateGuesses
from moesim.machine_costs import costs_of, hidden_experts, largest_step
from moesim.model import ModelSpec
from moesim.parts import Parts
from moesim.policies.composition import Policy, parse
from moesim.policies.composition import files as policy_files
from moesim.replay import Decisions, Replay
from moesim.requests.scheduler import Scheduler
from moesim.requests.serving import Serving, StreamConfig, rest_fraction, serve
from moesim.result import SCHEMA, Tally, Value
from moesim.timeline import Timeline
from moesim.trace import Trace
from moesim.versions import Versions
from moesim.window import (
    Recorded,
    Window,
    largest_events,
    load_trace,
    recorded_decisions,
    trace_hash,
    window_end,
)

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
    host_cache_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of all experts that host memory holds; the rest is read from disk when it is copied to the GPU."""
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
    device: Asked = "auto"
    """Who times the run: `auto` takes FastGPU where it applies. The row says which it was."""
    stream: StreamConfig | None = None
    """Requests that arrive by the clock, instead of the trace as it was recorded. Then `stream.warmup_requests` says
    what is not counted, not `warmup_tokens`."""
    grid: str = ""
    """Which grid of a sweep the run belongs to."""


def identity(config: RunConfig) -> dict[str, object]:
    """Everything that the run's outcome depends on, by content and not by place: equal identities, equal rows."""
    files = {
        "model": find("models", config.model),
        "hardware": find("hardware", config.hardware),
        "engine": find("engines", config.engine),
        **policy_files(config.policy),
    }
    dumped = config.model_dump(mode="json", exclude={"trace"})
    if config.host_cache_fraction == 1.0:
        del dumped["host_cache_fraction"]
    if config.stream is None:
        del dumped["stream"]
    elif config.stream.arrivals is not None:
        dumped["stream"]["arrivals"] = file_hash(config.stream.arrivals)
    return {
        **dumped,
        **{kind: Path(getattr(config, kind)).stem for kind in ("model", "hardware", "engine")},
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
    last_token_ns: tuple[int, int]
    """When the last decoded token began and ended: a steady one to look at on the timeline."""

    def row(self) -> dict[str, Value]:
        """All columns of `SCHEMA`, in that order."""
        return {name: self.values.get(name) for name in SCHEMA.names}


def capacity_of(
    policy: Policy, config: RunConfig, model: ModelSpec, trace: Trace, largest: tuple[int, int],
    hidden: float = 0.0,
) -> Capacity:
    """The slots of a run (the house's section 7). Raises ConfigError when they cannot hold one token's experts.

    `hidden`: how many experts are copied while a layer runs, for budgets that weigh the machine.
    """
    layers, experts = len(model.moe_layers), model.experts
    fraction = {"none": 0.0, "all": 1.0, "any": config.cache_fraction}[policy.spec.cache]
    if policy.spec.cache == "all":
        return Capacity(layers * experts, everything=True)
    if fraction == 0.0:
        return Capacity(sum(largest), workspace=True, low_slots=sum(largest) if policy.on_miss.low else 0)
    # Written as a decimal, a fraction times a whole number must not lose a slot to binary rounding.
    slots = int(fraction * layers * experts + 1e-9)
    if policy.draft.longest:  # the draft's experts take the place of the cache's
        slots = max(0, slots - ceil(draft_bytes(policy, model) / model.expert_bytes))
    capacity = policy.budget.divide(
        Memory(
            slots, layers, experts, model.top_k, model.expert_bytes,
            model.expert_bytes_in(policy.on_miss.low or model.expert_precision), trace, config.per_layer, hidden,
        )
    )
    fewest = min(capacity.slots, capacity.low_slots) if policy.on_miss.low else capacity.slots
    if fewest < model.top_k:
        low = f" in {policy.on_miss.low}" if fewest < capacity.slots else ""
        beside = " beside its draft" if policy.draft.longest else ""
        raise ConfigError(
            f"cache_fraction {config.cache_fraction:g} of {model.name}{beside} is {fewest} slots{low}"
            f"{' per layer' if capacity.per_layer else ''}, fewer than its top-k {model.top_k}: give 0 or more"
        )
    return capacity


def draft_bytes(policy: Policy, model: ModelSpec) -> int:
    """What a draft keeps on the GPU beside the model: all routed experts in its precision."""
    if not policy.draft.longest:
        return 0
    return len(model.moe_layers) * model.experts * model.with_experts_in(policy.draft.precision).expert_bytes


def host_slots(config: RunConfig, model: ModelSpec) -> int:
    """How many experts host memory holds, at least the one that passes through."""
    return max(1, int(config.host_cache_fraction * len(model.moe_layers) * model.experts + 1e-9))


def _versions_of(policy: Policy, capacity: Capacity, model: ModelSpec) -> Versions:
    return Parts(model, top_share=capacity.top_share) if capacity.bottom_slots else Versions(model, policy.on_miss.low)


def _slot_bytes(window: Window, policy: Policy, model: ModelSpec) -> int:
    """Bytes of all slots, each at the size of what it holds."""
    versions = _versions_of(policy, window.capacity, model)
    second = window.capacity.total_low(len(model.moe_layers)) + window.capacity.bottom_slots
    return (window.decider().slots - second) * versions.first_bytes + second * versions.second_bytes


def check_shape(trace: Trace, model: ModelSpec, path: Path) -> None:
    """Raise TraceError when the trace was not routed like the model."""
    for what, got, expected in (
        ("MoE layers", trace.layers, len(model.moe_layers)),
        ("experts", trace.n_experts, model.experts),
        ("top-k", trace.top_k, model.top_k),
    ):
        if got != expected:
            raise TraceError(f"{path}: {what} {got} do not match model {model.name}: expected {expected}")


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


@dataclass(frozen=True)
class Prepared:
    """A configuration whose inputs were found to fit together."""

    config: RunConfig
    trace: Trace
    model: ModelSpec
    hardware: HardwareSpec
    engine: EngineSpec
    policy: Policy
    window: Window
    device: Chosen
    serving: Serving | None


def prepare(config: RunConfig, *, timeline: bool = False) -> Prepared:
    """Load and check what a run needs. Raises InputError (one line) when its inputs do not fit together."""
    trace = load_trace(config.trace)
    model = ModelSpec.load(config.model)
    check_shape(trace, model, config.trace)
    hardware = HardwareSpec.load(config.hardware).override(config.hardware_overrides)
    engine = EngineSpec.load(config.engine)
    policy = parse(config.policy)
    policy.check(trace)
    device = choose_device(config.device, policy, engine, draws=timeline)
    if config.stream is not None:
        config = _for_stream(config, config.stream, policy, model, hardware)
    wanted = None if config.measured_tokens is None else config.warmup_tokens + config.measured_tokens
    stop = window_end(config.trace, wanted)
    stream = engine.prefill == "stream"
    clocked = config.stream is not None
    # Who will share a step is not known before: an event can bring a whole layer.
    largest = (model.experts,) * 2 if clocked else largest_events(config.trace, stop, stream, policy.name)
    hidden = 0.0
    if policy.budget.weighs_machine:
        context = config.context_tokens or int(trace.position[:stop].max()) + 1
        hidden = hidden_experts(hardware.at("centre"), engine, model, context)
    capacity = capacity_of(policy, config, model, trace, largest, hidden)
    costs = None
    if policy.uses_cpu:
        hardware.check_cpu(f"policy {policy.name} executes experts on the CPU")
        if engine.copy_thread is not None:
            raise ConfigError(
                f"engine {engine.name}: its copies wait in software queues, which are not simulated beside experts on"
                f" the CPU ({policy.name})"
            )
    if engine.drops_guesses and (policy.draft.longest or policy.route.copies > 1):
        raise ConfigError(f"engine {engine.name} drops late guesses of one layer; {policy.name} looks farther")
    if engine.drops_guesses and policy.on_miss.low:
        raise ConfigError(f"engine {engine.name} drops late guesses of one precision; {policy.name} keeps two")
    if capacity.bottom_slots:
        check_parts(policy, engine, on_disk=config.host_cache_fraction < 1.0)
    if policy.on_miss.weighs_costs:
        most = max(largest_step(config.trace, stop, config.stream), policy.draft.longest + 1)
        costs = costs_of(hardware.at("centre"), engine, model, most)
    if config.host_cache_fraction < 1.0:
        hardware.check_disk(f"host_cache_fraction {config.host_cache_fraction:g} leaves experts on disk")
        if policy.uses_cpu:
            raise ConfigError(f"host_cache_fraction: {policy.name} executes experts where they lie, in host memory")
        if policy.route.copies > 1:
            raise ConfigError(f"host_cache_fraction: {policy.name} copies an expert more than once from host memory")
        if policy.on_miss.low:
            raise ConfigError(f"host_cache_fraction: {policy.name} keeps two precisions of each expert in host memory")
    window = Window(config.trace, stop, policy.name, capacity, largest[0], stream, clocked, costs)
    if policy.draft.governed:
        context = config.context_tokens or int(trace.position[:stop].max()) + 1
        centre, draft = hardware.at("centre"), policy.draft
        cycle = cycle_costs(model, draft.precision, centre, engine, context, draft.longest)
        window = replace(window, draft_lengths=governed_lengths(window, cycle))
    serving = None
    if config.stream is not None:
        held_bytes = model.dense_bytes + _slot_bytes(window, policy, model)
        free_bytes = hardware.at("centre").memory_bytes - held_bytes
        serving = serve(config.stream, trace, model, free_bytes, config.context_tokens)
    return Prepared(config, trace, model, hardware, engine, policy, window, device, serving)


def _for_stream(
    config: RunConfig, stream: StreamConfig, policy: Policy, model: ModelSpec, hardware: HardwareSpec
) -> RunConfig:
    """The configuration with its cache in figures. Raises ConfigError for what a stream cannot be run with."""
    if policy.oracle:
        raise ConfigError(f"{policy.name} knows the future, which the clock decides when requests arrive as a stream")
    if policy.draft.longest:
        raise ConfigError(f"{policy.name} drafts for one sequence at a time: it cannot batch a stream of requests")
    if policy.prefetch.of_next_step:
        raise ConfigError(f"{policy.name} foresees the next batch, which only the clock forms in a stream of requests")
    if config.measured_tokens is not None:
        raise ConfigError("measured_tokens counts the trace as it was recorded: give requests for a stream")
    if not stream.cache_rest:
        return config
    assert stream.kv_tokens is not None, "checked"
    fraction = rest_fraction(stream.kv_tokens, model, hardware.at("centre").memory_bytes)
    return config.model_copy(update={"cache_fraction": fraction})


@paused_collector()
def simulate(config: RunConfig, *, timeline: bool = False) -> Result:
    """Run a configuration. Raises InputError (one line) when its inputs do not fit together."""
    run = prepare(config, timeline=timeline)
    asked, config = config, run.config
    trace, model, policy, window = run.trace, run.model, run.policy, run.window
    copies = policy.route.copies
    numbered = model.experts * copies
    drawing = Timeline(trace.n_experts, layers=trace.layers) if timeline else None
    slots = window.decider().slots
    versions = _versions_of(policy, window.capacity, model)
    low_slots, bottom_slots = window.capacity.total_low(trace.layers), window.capacity.bottom_slots
    sources: set[str] = set()

    def clock(hardware: Hardware, drawn: Timeline | None = None) -> tuple[Tally, Scheduler | None]:
        tally = Tally(
            0 if window.clocked else config.warmup_tokens, lossless=policy.lossless, layers=trace.layers,
            experts=numbered,
        )
        everyone = config.host_cache_fraction == 1.0
        plain = everyone and run.engine.expert_kernels == "grouped" and not window.clocked
        if run.device == "fast" and plain and is_compiled(policy, window.capacity, run.engine):
            compiled = CompiledRun(
                trace, window.stop, window.capacity, model, run.engine, hardware, parse(policy.name).prefetch,
                window.optimum(), tally.observe, config.context_tokens,
            )
            compiled.run()
            sources.update(compiled.kernel_sources)
            return tally, None
        decider = None
        if window.stop > RECORDED_TOKENS or window.clocked or run.engine.drops_guesses:
            decider = window.decider()
        decisions: Decisions = decider or Recorded(recorded_decisions(window))
        scheduler = None if run.serving is None else run.serving.scheduler(tally.observe)
        device = new_device(run.device, hardware, run.engine, drawn, with_cpu=policy.uses_cpu)
        cpu = CpuExperts(device, model) if isinstance(device, SimulatedGPUAndCPU) else None
        stretch = window.steps() if scheduler is None else scheduler.steps()
        observe = tally.observe if scheduler is None else scheduler.observe
        draft = model.with_experts_in(policy.draft.precision) if policy.draft.longest else None
        late = None
        if run.engine.drops_guesses:
            assert decider is not None
            assert isinstance(device, SimulatedGPUWithCopyThread)
            late = LateGuesses(decider, device)
        tier = None
        if not everyone:
            tier = HostTier(host_slots(config, model), trace.layers, trace.n_experts, model.expert_bytes, device)
        replay = Replay(
            stretch, decisions, device, model, run.engine, slots, observe, config.context_tokens,
            policy.executed_predictor, cpu, draft, late, copies, versions, tier,
        )
        device.run(replay.program())
        sources.update(device.kernel_sources)
        return tally, scheduler

    hardware = run.hardware.at("centre")
    tally, scheduler = clock(hardware, drawing)
    values = tally.columns(versions.first_bytes, versions.second_bytes, hardware.link_bytes_per_s)
    if config.interval:
        values["tpot_fast_ns"] = clock(run.hardware.at("fast"))[0].tpot_mean_ns
        values["tpot_slow_ns"] = clock(run.hardware.at("slow"))[0].tpot_mean_ns
    context = config.context_tokens or tally.longest_context_tokens
    kv_bytes = model.kv_bytes(context, tally.sequences)
    if run.serving is not None and scheduler is not None:
        values |= run.serving.columns() | scheduler.columns()
        kv_bytes = run.serving.kv_bytes_held(scheduler)
    vram = model.dense_bytes + kv_bytes + _slot_bytes(window, policy, model) + draft_bytes(policy, model)
    values |= {
        "grid": config.grid,
        "policy": policy.name,
        "model": model.name,
        "hardware": run.hardware.name,
        "trace": trace.metadata.name,
        "device": run.device,
        "engine": run.engine.name,
        "cache_fraction": {"none": 0.0, "all": 1.0, "any": config.cache_fraction}[policy.spec.cache],
        "per_layer": window.capacity.per_layer,
        "host_cache_fraction": config.host_cache_fraction,
        "host_bytes": host_slots(config, model) * model.expert_bytes,
        "context_tokens": config.context_tokens,
        "hardware_overrides": json.dumps(config.hardware_overrides, sort_keys=True),
        "link_bytes_per_s": round(hardware.link_bytes_per_s),
        "lossless": policy.lossless,
        "bound": policy.spec.bound,
        "open_loop": policy.open_loop,
        "clocked": window.clocked or run.engine.drops_guesses,
        "optimum_known": window.optimum_known,
        "synthetic": trace.metadata.synthetic,
        "feasible": vram <= hardware.memory_bytes,
        "slots": 0 if window.capacity.workspace else slots - low_slots - bottom_slots,
        "expert_bytes": model.expert_bytes,
        "low_precision": policy.on_miss.low,
        "slots_low": 0 if window.capacity.workspace else low_slots,
        "expert_low_bytes": None if policy.on_miss.low is None else versions.second_bytes,
        "top_share": window.capacity.top_share,
        "slots_bottom": bottom_slots,
        "copies_low": 0 if bottom_slots else values["copies_low"],
        "copies_bottom": values["copies_low"] if bottom_slots else 0,
        "draft_bytes": draft_bytes(policy, model),
        "vram_bytes": vram,
        "vram_free_bytes": hardware.memory_bytes - vram,
        "kernel_times": " and ".join(sorted(sources)),
        "trace_hash": trace_hash(config.trace),
        "configuration": json.dumps(identity(asked), sort_keys=True),
        "run_hash": run_hash(asked),
        "moesim_version": moesim.__version__,
    }
    return Result(values, drawing, tally.last_token_ns)
