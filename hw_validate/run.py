"""A validation from end to end: calibrate, measure cell by cell, simulate from the profile, compare, report.

    FOLDER/machine.json         the machine
    FOLDER/traces/              what the cells replay
    FOLDER/<hardware>.yaml      the calibration: the profile that the simulator is given
    FOLDER/measured/*.npz       a cell on the machine; written when it has been measured, and never measured again
    FOLDER/cells/*.json         the same cell in both worlds
    FOLDER/limits.json, timelines.json, comparison.parquet, report.html

Every file is whole or absent, so the same command goes on where it was stopped. A cell that was measured on another
trace or with other steps is measured again; a folder of another machine is refused. One model's experts are in host
memory at a time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from hw_validate.driver import DoesNotFitError
from hw_validate.grid import Plan, Planned, Validation
from hw_validate.harness import Harness, Tell
from hw_validate.limits import measure_limits
from hw_validate.measurement import MachineFacts, Measurement, Slice, Telemetry, Timelines, load, save
from hw_validate.nvml import Sampler
from hw_validate.raw import RawCell
from hw_validate.worlds import Clocked, simulate, world
from moesim.errors import ConfigError, InputError
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.timeline import Timeline
from moesim.window import trace_hash
from moesim.workers import answers, usable_cpus

if TYPE_CHECKING:
    from hw_validate.calibrate.profile import Shape

CELLS_PER_WORKER = 16
"""To simulate fewer takes less time than to start a process for them."""


def run_validation(harness: Harness, machine: MachineFacts, *, measure_only: bool = False) -> Path | None:
    """All stages. Returns the report's path, or None if it stops after measuring.

    Raises:
        InputError: something is missing of the machine or of the inputs; what was measured stays.
    """
    for name in ("measured", "cells"):
        (harness.folder / name).mkdir(parents=True, exist_ok=True)
    check_same_machine(harness.folder / "machine.json", machine)
    save(machine, harness.folder / "machine.json")
    if not harness.profile_path.exists():
        calibrate_device(harness.validation, harness.plan, machine, harness.tell, harness.profile_path)
    refused = [line for model in harness.validation.models for line in _measure_model(harness, model.model)]
    for line in refused:
        harness.tell(f"not measured: {line}")
    return None if measure_only else compare_worlds(harness)


def compare_worlds(harness: Harness) -> Path:
    """Simulate what was measured, compare and report; no GPU is asked. Returns the report's path.

    Raises:
        InputError: nothing was measured, or a file in the folder is torn.
    """
    from hw_validate.report import write_comparison_report

    if not harness.profile_path.exists():
        raise ConfigError(f"{harness.profile_path}: missing; `hw_validate run` measures before anything is compared")
    (harness.folder / "cells").mkdir(exist_ok=True)
    simulate_cells(harness)
    return write_comparison_report(harness.folder)


def check_same_machine(path: Path, machine: MachineFacts) -> None:
    """Raise ConfigError when what is there was measured on another machine: one profile would judge both."""
    if not path.exists():
        return
    before = load(path, MachineFacts)
    for what in ("device", "gpu", "driver", "torch", "processor", "operating_system"):
        was, now = getattr(before, what), getattr(machine, what)
        if was != now:
            raise ConfigError(
                f"{path}: measured with {what} {was or 'none'}, here it is {now or 'none'}: give another --out"
            )


def shapes_of(plan: Plan) -> list["Shape"]:
    """Every model and size of step for which kernels are to be timed."""
    from hw_validate.calibrate.profile import Shape

    cells = [planned for of_model in plan.cells.values() for planned in of_model]
    return list(dict.fromkeys(Shape(planned.model, *_shape(planned)) for planned in cells))


def calibrate_device(validation: Validation, plan: Plan, machine: MachineFacts, tell: Tell, path: Path) -> None:
    """Measure the machine's device, for the kernels that a validation needs, and write the profile to `path`."""
    from hw_validate.calibrate.profile import calibrate, save_profile

    if machine.device == "cpu":
        from hw_validate.calibrate.on_cpu import calibrate_cpu

        found = calibrate_cpu(shapes_of(plan), machine, tell=tell)
    else:
        found = calibrate(shapes_of(plan), HardwareSpec.load(validation.hardware), machine, tell=tell)
    save_profile(found, path)


def _measure_model(harness: Harness, model_name: str) -> list[str]:
    """Measure the cells of one model that are not measured yet. Returns a line for each that could not be, and why."""
    todo = [planned for planned in harness.plan.cells[model_name] if not _is_measured(harness, planned)]
    limits = harness.folder / "limits.json"
    wants_limits = harness.validation.baseline_model == model_name and not limits.exists()
    if wants_limits and harness.device == "cpu":
        harness.tell("limits and the plain engine: left out, they are a GPU's alone")
        wants_limits = False
    if not todo and not wants_limits:
        return []
    spec = ModelSpec.load(harness.plan.cells[model_name][0].model)
    refused: list[str] = []
    try:
        harness.tell(f"{spec.name}: {len(spec.moe_layers) * spec.experts * spec.expert_bytes / 1e9:.3g} GB of experts")
        with _experts(spec, harness.device) as host, Sampler(enabled=harness.device == "cuda") as sampler:
            for shape in dict.fromkeys(_shape(planned) for planned in todo):
                with _dense(spec, shape, harness.device) as dense:
                    for planned in (each for each in todo if _shape(each) == shape):
                        try:
                            _measure_cell(harness, planned, dense, host, sampler)
                        except DoesNotFitError as error:  # too many slots for this card: others need fewer
                            refused.append(f"{planned.cell.name}: {error}")
            if wants_limits:
                with _dense(spec, (1, 1, harness.validation.context_tokens), harness.device) as dense:
                    harness.tell(f"{spec.name}: the machine's limits and the plain engine")
                    save(measure_limits(harness, model_name, dense, host), limits)
    except InputError as error:
        refused.append(f"{spec.name}: {error}")
    return refused


def _is_measured(harness: Harness, planned: Planned) -> bool:
    """Whether the folder holds this very cell: the same steps of the same trace."""
    path = harness.folder / "measured" / f"{planned.cell.name}.npz"
    if not path.exists():
        return False
    if _is_of(RawCell.load(path), planned):
        return True
    harness.tell(f"{planned.cell.name}: measured under another plan, so again")
    path.unlink()  # nothing else would keep it from being compared, should measuring fail
    return False


def _is_of(raw: RawCell, planned: Planned) -> bool:
    """Whether what was measured is what is planned: a cell's name does not tell its context, steps or trace."""
    found = raw.cell, raw.instrumented_steps, raw.trace_hash
    return found == (planned.cell, planned.instrumented_steps, trace_hash(planned.trace))


def _shape(planned: Planned) -> tuple[int, int, int]:
    """Tokens of a step, sequences, context."""
    cell = planned.cell
    if cell.phase == "prefill":
        return cell.context_tokens, 1, cell.context_tokens
    return cell.batch_tokens, cell.batch_tokens, cell.context_tokens


@contextmanager
def _experts(spec: ModelSpec, device: str) -> Iterator[Any]:
    """All experts of a model in host memory, filled."""
    import torch

    from hw_validate.storage import HostExperts

    count = len(spec.moe_layers) * spec.experts
    with HostExperts(count, spec.expert_bytes, pinned=device == "cuda") as host:
        host.fill(torch.device(device), seed=1)
        yield host


@contextmanager
def _dense(spec: ModelSpec, shape: tuple[int, int, int], device: str) -> Iterator[Any]:
    """The dense layers of a model for one shape of step, captured; their memory is given back."""
    tokens, sequences, context_tokens = shape
    if device == "cuda":
        import torch

        from hw_validate.dense import DenseLayers

        layers = DenseLayers(spec, spec.layers, tokens, sequences, context_tokens)
        layers.capture()
        yield layers
        layers.groups.clear()
        del layers
        gc.collect()
        torch.cuda.empty_cache()
    else:
        from hw_validate.cpu import CpuDense

        yield CpuDense(spec, spec.layers, tokens, sequences, context_tokens)


def _measure_cell(harness: Harness, planned: Planned, dense: Any, host: Any, sampler: Sampler) -> None:
    from hw_validate.measured import measure

    cell = planned.cell
    work = harness.job(planned)
    moments: dict[str, int] = {"begin": perf_counter_ns()}
    timeline = Timeline(work.run.trace.n_experts) if cell.name in harness.validation.timelines else None
    ran = measure(
        work, dense, host, timeline=timeline,
        between=lambda moment: moments.__setitem__(moment, perf_counter_ns()),
    )
    told = world(ran.clocked, ran.deeds, work.decisions, work.run.trace.layers, work.run.model.expert_bytes)
    telemetry = sampler.between(moments["begin"], moments["end"]) if "end" in moments else Telemetry(samples=0)
    raw = RawCell(
        cell=cell, instrumented_steps=planned.instrumented_steps, trace_hash=trace_hash(planned.trace),
        world=told, telemetry=telemetry, deeds=ran.deeds,
        held=ran.held, torn=ran.torn, output_sha256=ran.output_sha256, output_steps=ran.output_steps,
        slices=_slices(cell.name, "measured", timeline, ran.clocked),
    )
    raw.save(harness.folder / "measured")
    harness.tell(f"{cell.name}: {told.tpot_ns / 1e6:.3f} ms")


def _slices(name: str, where: str, timeline: Timeline | None, clocked: Clocked) -> list[Slice]:
    """What a timeline holds of the last instrumented step, counted from its begin."""
    if timeline is None or not clocked.instrumented:
        return []
    begin, end = clocked.instrumented[-1].begin_ns, clocked.instrumented[-1].end_ns
    return [
        Slice(
            cell=name, world=where, track=each.track, name=each.name, layer=each.layer, expert=each.expert,  # type: ignore[arg-type]
            start_ns=each.start_ns - begin, end_ns=each.end_ns - begin,
        )
        for each in timeline.between(begin, end)
    ]


def simulate_cells(harness: Harness) -> None:
    """The simulated side of every measured cell, from the profile alone; then they are compared, event by event."""
    todo = [
        planned for cells in harness.plan.cells.values() for planned in cells
        if (harness.folder / "measured" / f"{planned.cell.name}.npz").exists()
    ]
    for planned in todo:
        path = harness.folder / "measured" / f"{planned.cell.name}.npz"
        if not _is_of(RawCell.load(path), planned):
            raise ConfigError(f"{path}: measured under another plan (context, steps, layers or trace): measure again")
    arguments = [(harness.validation, planned, harness.folder) for planned in todo]
    names = {f"{planned.cell.name}.json" for planned in todo}
    for left in (harness.folder / "cells").glob("*.json"):  # of a plan that has changed since
        if left.name not in names:
            left.unlink()
    slices: list[Slice] = []
    workers = min(usable_cpus(), 1 + len(todo) // CELLS_PER_WORKER)
    found = answers(arguments, _simulate_cell, workers, lambda work: work[1].cell.model)
    for number, (measurement, both) in enumerate(found, start=1):
        save(measurement, harness.folder / "cells" / f"{measurement.cell.name}.json")
        slices += both
        if number % 20 == 0 or number == len(todo):
            harness.tell(f"simulated {number} of {len(todo)} cells")
    if slices:
        slices.sort(key=lambda each: each.cell)  # answers come in no order
        save(Timelines(slices=slices), harness.folder / "timelines.json")


def _simulate_cell(arguments: tuple[Validation, Planned, Path]) -> Iterator[tuple[Measurement, list[Slice]]]:
    """A worker's work: the harness cannot travel to it, what it is made of can."""
    validation, planned, folder = arguments
    yield simulate_cell(Harness(validation, None, folder, "simulated", lambda line: None), planned)  # type: ignore[arg-type]


def simulate_cell(harness: Harness, planned: Planned) -> tuple[Measurement, list[Slice]]:
    """One measured cell beside what the simulator says of it; slices of a token where a timeline was asked for.

    Raises:
        ConfigError: it was not measured, or the file is torn.
    """
    raw = RawCell.load(harness.folder / "measured" / f"{planned.cell.name}.npz")
    cell = raw.cell
    work = harness.job(planned)
    timeline = Timeline(work.run.trace.n_experts) if raw.slices else None
    clocked, deeds, holder = simulate(work, HardwareSpec.load(str(harness.profile_path)).at("centre"), timeline)
    executed = [tag for event in raw.deeds.executed for tag in event]
    expected = [expert for event in deeds.executed for expert in event]
    differently = sum(a != b for a, b in zip(executed, expected, strict=False)) + abs(len(executed) - len(expected))
    different = sum(
        a != b or c != d
        for a, b, c, d in zip(raw.deeds.copies, deeds.copies, raw.deeds.executed, deeds.executed, strict=True)
    )
    different += sum(raw.held[slot] != expert for slot, expert in holder.items())
    measurement = Measurement(
        cell=cell, measured=raw.world,
        simulated=world(clocked, deeds, work.decisions, work.run.trace.layers, work.run.model.expert_bytes),
        lossless=work.run.policy.lossless, timing_dependent=False, executed=len(executed),
        executed_differently=differently + raw.torn, decisions_compared=len(work.decisions),
        decisions_different=different, telemetry=raw.telemetry, output_sha256=raw.output_sha256,
        output_steps=raw.output_steps,
    )
    return measurement, raw.slices + _slices(cell.name, "simulated", timeline, clocked)
