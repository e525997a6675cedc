"""One replay of a prepared run under one set of the hardware's figures: its device and machinery, put together."""

from dataclasses import dataclass

from moesim.compiled.run import CompiledRun, is_compiled
from moesim.cpu_experts import CpuExperts
from moesim.device_choice import new_device
from moesim.devices.copy_queues import SimulatedGPUWithCopyThread
from moesim.devices.simulated_cpu import SimulatedGPUAndCPU
from moesim.hardware import Hardware
from moesim.host_tier import HostTier
from moesim.late_guesses import LateGuesses
from moesim.policies.composition import parse
from moesim.prepare import Prepared
from moesim.replay import Decisions, Replay
from moesim.requests.scheduler import Scheduler
from moesim.result import Tally
from moesim.run_slots import host_slots, versions_of
from moesim.timeline import Timeline
from moesim.window import Recorded, recorded_decisions

RECORDED_TOKENS = 16_384
"""Up to this many rows, decisions are kept in memory and timed again; beyond it each clock decides anew."""


@dataclass(frozen=True)
class Timed:
    """What a replay left."""

    tally: Tally
    scheduler: Scheduler | None
    """Of a run whose requests arrive by the clock."""
    kernel_sources: frozenset[str]
    """Where the kernels' times came from."""


def replay_once(run: Prepared, hardware: Hardware, drawing: Timeline | None = None) -> Timed:
    """Replay a run to its end; `drawing` keeps what its device does."""
    tally = Tally(
        0 if run.window.clocked else run.config.warmup_tokens, lossless=run.policy.lossless, layers=run.trace.layers,
        experts=run.model.experts * run.policy.route.copies,
    )
    plain = run.config.host_cache_fraction == 1.0 and run.engine.expert_kernels == "grouped" and not run.window.clocked
    if run.device == "fast" and plain and is_compiled(run.policy, run.window.capacity, run.engine):
        return Timed(tally, None, _replay_compiled(run, hardware, tally))
    scheduler = None if run.serving is None else run.serving.scheduler(tally.observe)
    return Timed(tally, scheduler, _replay(run, hardware, drawing, tally, scheduler))


def _replay_compiled(run: Prepared, hardware: Hardware, tally: Tally) -> frozenset[str]:
    compiled = CompiledRun(
        run.trace, run.window.stop, run.window.capacity, run.model, run.engine, hardware,
        parse(run.policy.name).prefetch, run.window.optimum(), tally.observe, run.config.context_tokens,
    )
    compiled.run()
    return frozenset(compiled.kernel_sources)


def _replay(
    run: Prepared, hardware: Hardware, drawing: Timeline | None, tally: Tally, scheduler: Scheduler | None
) -> frozenset[str]:
    config, trace, model, policy, window = run.config, run.trace, run.model, run.policy, run.window
    decider = None
    if window.stop > RECORDED_TOKENS or window.clocked or run.engine.drops_guesses:
        decider = window.decider()
    decisions: Decisions = decider or Recorded(recorded_decisions(window))
    device = new_device(run.device, hardware, run.engine, drawing, with_cpu=policy.uses_cpu)
    cpu = CpuExperts(device, model) if isinstance(device, SimulatedGPUAndCPU) else None
    draft = model.with_experts_in(policy.draft.precision) if policy.draft.longest else None
    late = None
    if run.engine.drops_guesses:
        assert decider is not None
        assert isinstance(device, SimulatedGPUWithCopyThread)
        late = LateGuesses(decider, device)
    tier = None
    if config.host_cache_fraction < 1.0:
        tier = HostTier(host_slots(config, model), trace.layers, trace.n_experts, model.expert_bytes, device)
    replay = Replay(
        window.steps() if scheduler is None else scheduler.steps(), decisions, device, model, run.engine,
        run.slots, tally.observe if scheduler is None else scheduler.observe, config.context_tokens,
        policy.executed_predictor, cpu, draft, late, policy.route.copies, versions_of(policy, window.capacity, model),
        tier,
    )
    device.run(replay.program())
    return frozenset(device.kernel_sources)
