"""Every system on every trace: who takes part in what, who cannot and why, and the runs.

configs/tournament.yaml is a sweep's grids under `grids`, what stands above them under `axes`, and the traces to run
them on, of configs/published-traces.yaml. A policy whose predictor a trace has not recorded takes `foresight`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from moesim.config import Sweep, SweepConfig, over, read_axes, runs_of
from moesim.errors import ConfigError, InputError, nearest
from moesim.events import DECODE
from moesim.model import ModelSpec
from moesim.policies.composition import parse, split_call
from moesim.prepare import prepare
from moesim.published.traces import TraceSource, beside, load_sources, made_ready
from moesim.run_config import RunConfig
from moesim.sweep import Progress, run_sweep
from moesim.sweep_tasks import Row
from moesim.trace import Trace
from moesim.window import load_trace
from moesim.yaml_file import line_of, read_model

Need = Literal["weights", "scores", "batches", "16-bit experts"]
ALL: Literal["all"] = "all"
LACKS: Mapping[Need, str] = {
    "weights": "the trace has ids and no gate weights",
    "scores": "the trace has not every router probability",
    "batches": "the trace decodes one sequence at a time, of whose next token nothing is foreseen",
    "16-bit experts": "the model's experts have four bits already",
}


class Grid(BaseModel):
    """Systems that compete under the same conditions; what is not said here is an axis of a sweep."""

    model_config = ConfigDict(frozen=True, extra="allow")

    needs: tuple[Need, ...] = ()

    @field_validator("needs", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        return given if isinstance(given, list) else [given]

    @property
    def axes(self) -> dict[str, Any]:
        """As a sweep would have them."""
        return dict(self.model_extra or {})


class Entered(BaseModel):
    """A trace of the tournament."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    grids: Literal["all"] | list[str] = ALL
    """Which are run on it."""


class Tournament(BaseModel):
    """configs/tournament.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    sources: Path
    """What the traces are, relative to this file."""
    traces: dict[str, Entered] = Field(min_length=1)
    axes: dict[str, Any] = {}
    foresight: str
    grids: dict[str, Grid] = Field(min_length=1)

    def grids_of(self, trace: str) -> list[str]:
        """Which grids are run on a trace."""
        listed = self.traces[trace].grids
        return list(self.grids) if listed == ALL else list(listed)


@dataclass(frozen=True)
class LeftOut:
    """A system that could not compete on a trace."""

    policy: str
    reason: str
    caches: tuple[float, ...]
    """At which cache sizes; none: at all of them."""


@dataclass(frozen=True)
class Round:
    """One trace: what is run on it, and who is not there."""

    trace: str
    sweep: Sweep
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Played:
    """The outcome of a tournament."""

    rows: list[Row]
    """Of every run, the columns of a result, and `copies_only` and `reads_ahead` of its policy."""
    left_out: dict[str, tuple[LeftOut, ...]]
    """By trace."""
    titles: dict[str, str]
    """Of each trace, in words."""
    absent: list[str]
    """Traces whose recording is not at hand."""


def load_tournament(path: Path) -> Tournament:
    """Read the file.

    Raises:
        ConfigError: an unknown key, a trace or grid that is not known, or a value that its key cannot have.
    """
    tournament = read_model(path, Tournament)
    known = load_sources(beside(path, tournament.sources)).traces
    for trace in tournament.traces:
        where = f"{path}{line_of(path, 'traces', trace)}: traces.{trace}"
        if trace not in known:
            raise ConfigError(f"{where}: unknown trace: {nearest(trace, known)}")
        for grid in tournament.grids_of(trace):
            if grid not in tournament.grids:
                raise ConfigError(f"{where}: unknown grid {grid!r}: {nearest(grid, tournament.grids)}")
    return tournament


def play(path: Path, recordings: Path | None, out: Path, workers: int, progress: Progress) -> Played:
    """Run every round as a sweep of its own into a folder of `out`; interrupted, the next call continues.

    Raises:
        InputError: the tournament cannot be run, or its folder not be written.
    """
    tournament = load_tournament(path)
    sources_path = beside(path, tournament.sources)
    sources = load_sources(sources_path)
    rounds, absent = [], []
    with TemporaryDirectory(prefix="moesim-tournament-") as work:
        for name in tournament.traces:
            source = sources.traces[name]
            trace = made_ready(source, sources_path, recordings, Path(work), name)
            if trace is None:
                absent.append(name)
                continue
            rounds.append(round_of(tournament, path, name, source, trace))
        total, done = sum(len(each.sweep.runs) for each in rounds), 0
        rows: list[Row] = []
        for each in rounds:
            found = run_sweep(each.sweep, out / each.trace, workers, _of_all(progress, done, total))
            rows += [row | {"trace": each.trace} | _about(str(row["policy"])) for row in found]
            done += len(found)
    titles = {each.trace: tournament.traces[each.trace].title for each in rounds}
    return Played(rows, {each.trace: each.left_out for each in rounds}, titles, absent)


def _of_all(progress: Progress, before: int, total: int) -> Progress:
    """What a sweep reports, as a part of all."""
    return lambda done, _: progress(before + done, total)


def _about(policy: str) -> Row:
    composed = parse(policy)
    return {"copies_only": not composed.uses_cpu, "reads_ahead": composed.reads_ahead}


def round_of(tournament: Tournament, path: Path, name: str, source: TraceSource, trace: Path) -> Round:
    """Who competes on a trace, and who cannot.

    Raises:
        ConfigError: an axis that there is not, or a value that it cannot have.
    """
    recorded, model = load_trace(trace), ModelSpec.load(source.model)
    grids = tournament.grids_of(name)
    above = read_axes(tournament.axes, path, "axes")
    runs: list[RunConfig] = []
    left_out: dict[tuple[str, str], list[float]] = {}
    unfit: dict[str, str | None] = {}
    for grid in grids:
        axes = over(above, read_axes(tournament.grids[grid].axes, path, "grids", grid))
        lacking = [need for need in tournament.grids[grid].needs if not _has(need, recorded, model)]
        if lacking:
            left_out |= {(policy, LACKS[lacking[0]]): [] for policy in axes["policy"]}
            continue
        for run in runs_of(grid, axes | {"trace": [trace], "model": [source.model]}, path, "grids", grid):
            run = run.model_copy(update={"policy": _foreseeing(run.policy, recorded, tournament.foresight)})
            # What fits together does so with every card.
            key = run.model_copy(update={"hardware": ""}).model_dump_json()
            if key not in unfit:
                unfit[key] = _error(run)
                if (error := unfit[key]) is not None:
                    left_out.setdefault((run.policy, error), []).append(run.cache_fraction)
            if unfit[key] is None:
                runs.append(run)
    once = list({run.model_dump_json(): run for run in runs}.values())
    config = SweepConfig(
        name=name, title=f"{tournament.title}: {name}", grids={grid: tournament.grids[grid].axes for grid in grids}
    )
    return Round(
        name, Sweep(path, config, once, []),
        tuple(LeftOut(policy, reason, tuple(caches)) for (policy, reason), caches in left_out.items()),
    )


def _has(need: Need, trace: Trace, model: ModelSpec) -> bool:
    if need == "weights":
        return trace.weights is not None
    if need == "scores":
        return trace.scores is not None
    if need == "batches":
        decoded = trace.step[trace.phase == DECODE]
        return bool(len(np.unique(decoded)) < len(decoded))
    return model.expert_precision in ("bf16", "fp16")


def _foreseeing(policy: str, trace: Trace, foresight: str) -> str:
    """The policy, with `foresight` in place of a predictor that the trace has not recorded."""
    try:
        parse(policy).check(trace)
    except ConfigError:
        name, arguments = split_call(policy)
        given = ",".join(f"{key}={value}" for key, value in (arguments | {"predictor": foresight}).items())
        return parse(f"{name}[{given}]").name
    return policy


def _error(run: RunConfig) -> str | None:
    """Why a run cannot be run, or None."""
    try:
        prepare(run)
    except InputError as error:
        return str(error)
    return None
