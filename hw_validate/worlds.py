"""One cell, run in one world: the same window, the same decisions, the same loop; on the GPU or in the simulator.

Both leave the same record, made of what the *device* did: whom it copied into which slot, whom it executed, and when
each step ended. In the measured world "whom it executed" is what the kernels read out of the slots.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hw_validate.measurement import TIME_CLASSES, World
from moesim.decision import Decision
from moesim.devices.base import Device, KernelRun, Prepared
from moesim.devices.simulated import Queue, SimulatedGPU, SimulatedStream
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import Step, steps
from moesim.hardware import Hardware
from moesim.prepare import Prepared as PreparedRun
from moesim.prepare import prepare
from moesim.replay import Replay, StepOutcome
from moesim.run import paused_collector
from moesim.run_config import RunConfig
from moesim.timeline import Timeline
from moesim.window import Recorded, load_trace, recorded_decisions


@dataclass
class Deeds:
    """What a device did, event by event: copies as (expert, slot), and experts executed, each in order."""

    copies: list[list[tuple[int, int]]]
    executed: list[list[int]]

    @classmethod
    def empty(cls, events: int) -> "Deeds":
        """No deed yet, for so many events."""
        return cls([[] for _ in range(events)], [[] for _ in range(events)])


@dataclass
class Clocked:
    """What the loop told of a run: the outcome of each step, and the spans of steps that count."""

    warmup: int
    measured: int
    outcomes: list[StepOutcome] = field(default_factory=list)

    def observe(self, outcome: StepOutcome) -> None:
        """Take in a step."""
        self.outcomes.append(outcome)

    @property
    def counted(self) -> list[StepOutcome]:
        """The measured steps."""
        return self.outcomes[self.warmup : self.warmup + self.measured]

    @property
    def instrumented(self) -> list[StepOutcome]:
        """The steps behind them, on which timestamps are taken."""
        return self.outcomes[self.warmup + self.measured :]


class _LoggedSimulatedGPU(SimulatedGPU):
    """The simulated GPU, which also keeps whom its slots hold and so whom it executes."""

    def __init__(self, hardware: Hardware, engine: EngineSpec, events: int, timeline: Timeline | None = None) -> None:
        super().__init__(hardware, engine, timeline)
        self.deeds = Deeds.empty(events)
        self.holder: dict[int, int] = {}
        self._event = -1

    def decided(self) -> None:
        super().decided()
        self._event += 1

    def copy(self, stream: Queue, expert: int, slot: int, size_bytes: int) -> int:
        self.holder[slot] = expert
        self.deeds.copies[self._event].append((expert, slot))
        return super().copy(stream, expert, slot, size_bytes)

    def launch(self, stream: SimulatedStream, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        if prepared.kind == "experts":
            self.deeds.executed[self._event] += [self.holder[slot] for slot in slots]
        return super().launch(stream, prepared, slots)


@dataclass(frozen=True)
class Job:
    """A cell whose inputs are loaded: its window, its decisions, and how its steps are counted."""

    run: PreparedRun
    decisions: list[Decision]
    slots: int
    warmup_steps: int
    measured_steps: int
    instrumented_steps: int

    @property
    def steps(self) -> int:
        """All steps that are run."""
        return self.warmup_steps + self.measured_steps + self.instrumented_steps

    @property
    def predictor(self) -> str | None:
        """The channel whose ranking is executed, if the policy executes predictions."""
        return self.run.policy.executed_predictor

    def window(self) -> Iterator[Step]:
        """The steps, from the first."""
        return steps(load_trace(self.run.config.trace), 0, self.run.window.stop)

    def replay(self, device: Device[Any], observe: Callable[[StepOutcome], None]) -> Replay:
        """The loop over this window, on a device."""
        return Replay(
            self.window(), Recorded(self.decisions), device, self.run.model, self.run.engine, self.slots, observe,
            self.run.config.context_tokens, self.predictor,
        )


def job(config: RunConfig, warmup_steps: int, measured_steps: int, instrumented_steps: int) -> Job:
    """Load and decide. Raises InputError (one line) when the inputs do not fit together."""
    run = prepare(config)
    if run.policy.uses_cpu:
        raise ConfigError(f"policy {run.policy.name} executes experts on the CPU: the real devices do not")
    if run.policy.draft.longest:
        raise ConfigError(f"policy {run.policy.name}: hw_validate has no draft model to run; give one without a draft")
    if run.policy.route.copies > 1 or run.engine.expert_kernels != "grouped":
        raise ConfigError(f"{run.policy.name} on engine {run.engine.name}: the real devices have no copies or servers")
    if run.policy.on_miss.low is not None:
        raise ConfigError(f"policy {run.policy.name}: fetches {run.policy.on_miss.low}: a device stores one precision")
    if run.window.capacity.bottom_slots:
        raise ConfigError(f"policy {run.policy.name}: keeps tops of experts: the real devices store whole experts")
    return Job(
        run, recorded_decisions(run.window), run.slots, warmup_steps, measured_steps,
        instrumented_steps,
    )


@paused_collector()
def simulate(job: Job, hardware: Hardware, timeline: Timeline | None = None) -> tuple[Clocked, Deeds, dict[int, int]]:
    """The simulated world: its clock, its deeds, and whom each slot holds at the end."""
    clocked = Clocked(job.warmup_steps, job.measured_steps)
    device = _LoggedSimulatedGPU(hardware, job.run.engine, len(job.decisions), timeline)
    if job.run.window.capacity.everything:
        device.holder = {slot: slot for slot in range(job.slots)}
    device.run(job.replay(device, clocked.observe).program())
    return clocked, device.deeds, device.holder


def world(clocked: Clocked, deeds: Deeds, decisions: Sequence[Decision], layers: int, expert_bytes: int) -> World:
    """The numbers of one world, counted from what its device did in the measured steps.

    A hit is an expert that was executed without having been copied for this event on demand. Whoever was neither
    executed nor copied, because something stood in for it, is a miss.
    """
    hits = misses = copies = 0
    first = clocked.warmup * layers
    for event in range(first, first + clocked.measured * layers):
        fetched = {expert for expert, _ in deeds.copies[event]}
        executed = deeds.executed[event]
        hits += sum(expert not in fetched for expert in executed)
        misses += sum(expert in fetched for expert in executed) + len(decisions[event].stood_in)
        copies += len(deeds.copies[event])
    shown = clocked.instrumented
    classes = {
        f"{name}_ns": sum(getattr(outcome.time, f"{name}_ns") for outcome in shown) / len(shown) if shown else None
        for name in TIME_CLASSES
    }
    return World(
        step_ns=[outcome.end_ns - outcome.begin_ns for outcome in clocked.counted],
        hits=hits, misses=misses, bytes_copied=copies * expert_bytes, **classes,
    )
