"""Load what a run needs, and refuse in one line what does not fit together."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from moesim.decide_parts import check_parts
from moesim.device_choice import Chosen, choose_device
from moesim.draft.costs import cycle_costs
from moesim.draft.plan import governed_lengths
from moesim.engine import EngineSpec
from moesim.errors import ConfigError, TraceError
from moesim.hardware import HardwareSpec
from moesim.machine_costs import costs_of, hidden_experts, largest_step
from moesim.model import ModelSpec
from moesim.policies.composition import Policy, parse
from moesim.requests.serving import Serving, StreamConfig, rest_fraction, serve
from moesim.run_config import RunConfig
from moesim.run_slots import capacity_of, slot_bytes
from moesim.trace import Trace
from moesim.window import Window, largest_events, load_trace, window_end


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

    @cached_property
    def slots(self) -> int:
        """Of all pools, with those of low precision and for bottoms."""
        return self.window.decider().slots


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
    _check_machinery(policy, engine, hardware, config.host_cache_fraction)
    if config.stream is not None:
        config = _for_stream(config, config.stream, policy, model, hardware)
    wanted = None if config.measured_tokens is None else config.warmup_tokens + config.measured_tokens
    stop = window_end(config.trace, wanted)
    stream = engine.prefill == "stream"
    clocked = config.stream is not None
    # Who will share a step is not known before: an event can bring a whole layer.
    largest = (model.experts,) * 2 if clocked else largest_events(config.trace, stop, stream, policy.name)
    centre = hardware.at("centre")
    context_tokens = config.context_tokens or int(trace.position[:stop].max()) + 1
    hidden = hidden_experts(centre, engine, model, context_tokens) if policy.budget.weighs_machine else 0.0
    capacity = capacity_of(policy, config, model, trace, largest, hidden)
    if capacity.bottom_slots:
        check_parts(policy, engine, on_disk=config.host_cache_fraction < 1.0)
    costs = None
    if policy.on_miss.weighs_costs:
        most = max(largest_step(config.trace, stop, config.stream), policy.draft.longest + 1)
        costs = costs_of(centre, engine, model, most)
    window = Window(config.trace, stop, policy.name, capacity, largest[0], stream, clocked, costs)
    if policy.draft.governed:
        cycle = cycle_costs(model, policy.draft.precision, centre, engine, context_tokens, policy.draft.longest)
        window = replace(window, draft_lengths=governed_lengths(window, cycle))
    serving = None
    if config.stream is not None:
        held_bytes = model.dense_bytes + slot_bytes(window.decider().slots, capacity, policy, model)
        free_bytes = centre.memory_bytes - held_bytes
        serving = serve(config.stream, trace, model, free_bytes, config.context_tokens)
    return Prepared(config, trace, model, hardware, engine, policy, window, device, serving)


def _check_machinery(policy: Policy, engine: EngineSpec, hardware: HardwareSpec, host_cache_fraction: float) -> None:
    """Raise ConfigError where a policy, an engine and a machine do not go together, each fine by itself."""
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
    if engine.expert_kernels == "servers" and policy.on_miss.low:
        raise ConfigError(f"engine {engine.name} serves experts of one precision; {policy.name} keeps two")
    if host_cache_fraction < 1.0:
        hardware.check_disk(f"host_cache_fraction {host_cache_fraction:g} leaves experts on disk")
        if policy.uses_cpu:
            raise ConfigError(f"host_cache_fraction: {policy.name} executes experts where they lie, in host memory")
        if policy.route.copies > 1:
            raise ConfigError(f"host_cache_fraction: {policy.name} copies an expert more than once from host memory")
        if policy.on_miss.low:
            raise ConfigError(f"host_cache_fraction: {policy.name} keeps two precisions of each expert in host memory")


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


def check_shape(trace: Trace, model: ModelSpec, path: Path) -> None:
    """Raise TraceError when the trace was not routed like the model."""
    for what, got, expected in (
        ("MoE layers", trace.layers, len(model.moe_layers)),
        ("experts", trace.n_experts, model.experts),
        ("top-k", trace.top_k, model.top_k),
    ):
        if got != expected:
            raise TraceError(f"{path}: {what} {got} do not match model {model.name}: expected {expected}")
