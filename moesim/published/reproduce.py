"""From claims to verdicts: which runs they compare, run once each however many claims share them, and what came out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moesim.catalogue import find, names
from moesim.errors import ConfigError, InputError, nearest
from moesim.events import DECODE
from moesim.prepare import prepare
from moesim.published.system import Claim, System, columns_of, load_system, runs_named
from moesim.published.traces import TraceSources, beside, load_sources, made_ready
from moesim.published.verdict import Verdict, agrees, together
from moesim.quality import stored
from moesim.record.predictors.recall import measure_recall
from moesim.run_config import RunConfig, run_hash
from moesim.sweep_tasks import Group, Row, kin, split, work
from moesim.window import Window, load_trace
from moesim.workers import answers

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """A claim on one trace."""

    trace: str
    """Its name; for what was measured by running a model, the name of that model's trace."""
    value: float | None
    verdict: Verdict
    reason: str = ""
    """Why it cannot be tested."""


@dataclass(frozen=True)
class Tested:
    """A claim and what came of it on each trace."""

    claim: Claim
    outcomes: tuple[Outcome, ...]

    @property
    def verdict(self) -> Verdict:
        """Agree, contradict or cannot be tested."""
        return together([outcome.verdict for outcome in self.outcomes])


@dataclass(frozen=True)
class Reproduced:
    """A system and its claims."""

    name: str
    system: System
    tested: tuple[Tested, ...]


@dataclass(frozen=True)
class Asked:
    """What is to be reproduced: systems by name, and the traces that they name."""

    systems: Mapping[str, tuple[Path, System]]
    sources_path: Path
    sources: TraceSources


def load_asked(system: str | None) -> Asked:
    """Everything in configs/published, or one system of it.

    Raises:
        ConfigError: no system of that name, or a file that breaks a rule.
    """
    known = names("published")
    if system is not None and system not in known:
        raise ConfigError(f"unknown system {system!r}: {nearest(system, known)}")
    sources_path = find("published", known[0]).parent.parent / "published-traces.yaml" if known else None
    if sources_path is None:
        raise ConfigError("configs/published: no such folder: run this where the repository is")
    sources = load_sources(sources_path)
    paths = {name: find("published", name) for name in known if system in (None, name)}
    systems = {name: (path, load_system(path, sources.traces)) for name, path in paths.items()}
    return Asked(systems, sources_path, sources)


def reproduce(asked: Asked, recordings: Path | None, workers: int, progress: Progress) -> list[Reproduced]:
    """Run what the claims compare and judge each.

    `recordings` is a folder with other people's recordings; None, or a folder that lacks one: what needs it cannot be
    tested.

    Raises:
        InputError: runs that cannot be run; one line that names file and run.
    """
    with TemporaryDirectory(prefix="moesim-reproduce-") as folder:
        wanted = {
            trace
            for _, system in asked.systems.values()
            for claim in system.claims
            if claim.missing is None and claim.of not in system.costs
            for trace in system.traces_of(claim)
        }
        traces = {
            name: made_ready(asked.sources.traces[name], asked.sources_path, recordings, Path(folder), name)
            for name in sorted(wanted)
        }
        plans = [
            _Plan(name, path, system, asked, {trace: at for trace, at in traces.items() if at is not None})
            for name, (path, system) in asked.systems.items()
        ]
        rows = _rows({run_hash(run): run for plan in plans for run in plan.all_runs()}, workers, progress)
        return [plan.judged(rows) for plan in plans]


def _rows(runs: Mapping[str, RunConfig], workers: int, progress: Progress) -> dict[str, Row]:
    """The row of every run; runs that share decisions are decided once."""
    groups: dict[Window, list[RunConfig]] = {}
    for run in runs.values():
        groups.setdefault(prepare(run).window, []).append(run)
    tasks = split([Group(window, shared) for window, shared in groups.items()], workers)
    rows: dict[str, Row] = {}
    progress(0, len(runs))
    with closing(answers(tasks, work, workers, kin)) as found:
        for row in found:
            assert isinstance(row, dict), "no timeline was asked for"
            rows[str(row["run_hash"])] = row
            progress(len(rows), len(runs))
    return rows


@dataclass(frozen=True)
class _Plan:
    """A system and the traces at hand."""

    name: str
    path: Path
    system: System
    asked: Asked
    traces: Mapping[str, Path]
    checked: dict[tuple[str, str], list[RunConfig]] = field(default_factory=dict)
    """What a name stands for on a trace, once it has been found that it can be run."""

    def all_runs(self) -> Iterator[RunConfig]:
        """Every run that some claim needs."""
        for claim in self.system.claims:
            for trace in self.system.traces_of(claim):
                for name in (claim.of, claim.over):
                    if name in self.system.runs and trace in self.traces:
                        yield from self._runs(name, trace)

    def _runs(self, name: str, trace: str) -> list[RunConfig]:
        if (name, trace) in self.checked:
            return self.checked[name, trace]
        runs = runs_named(self.system, name, self.path, self.traces[trace], self.asked.sources.traces[trace].model)
        for run in runs:
            try:
                prepare(run)
            except InputError as error:
                raise ConfigError(f"{self.path}: runs.{name} on {trace}: {error}") from None
        self.checked[name, trace] = runs
        return runs

    def judged(self, rows: Mapping[str, Row]) -> Reproduced:
        """Every claim with its outcomes."""
        return Reproduced(
            self.name, self.system, tuple(Tested(claim, self._outcomes(claim, rows)) for claim in self.system.claims)
        )

    def _outcomes(self, claim: Claim, rows: Mapping[str, Row]) -> tuple[Outcome, ...]:
        if claim.missing is not None:
            return (Outcome("", None, "cannot be tested", claim.missing),)
        if claim.of in self.system.costs:
            return (self._judge(claim, self._name_of_quality(), [self._cost(claim.of)], self._costs(claim.over)),)
        return tuple(self._on_trace(claim, trace, rows) for trace in self.system.traces_of(claim))

    def _on_trace(self, claim: Claim, trace: str, rows: Mapping[str, Row]) -> Outcome:
        if trace not in self.traces:
            recording = self.asked.sources.traces[trace].recording
            return Outcome(trace, None, "cannot be tested", f"the recording {recording} is not at hand (--traces)")

        def values(name: str) -> list[float | None]:
            if name in self.system.recalls:
                return [self._recall(name, trace)]
            assert claim.metric is not None, "checked"
            return [metric_of(rows[run_hash(run)], claim.metric) for run in self._runs(name, trace)]

        assert claim.of is not None, "checked"
        return self._judge(claim, trace, values(claim.of), None if claim.over is None else values(claim.over))

    def _judge(
        self, claim: Claim, trace: str, of: list[float | None], over: list[float | None] | None
    ) -> Outcome:
        """One value out of one or several, and its verdict. Runs are compared pair by pair."""
        if over is not None and len(over) == 1:
            over *= len(of)
        pairs = list(zip(of, over or [1.0] * len(of), strict=True))
        if claim.take is None and len(pairs) != 1:
            raise ConfigError(f"{self.path}: claim {claim.id}: {len(pairs)} values: say which to take: most or least")
        ratios = [value / base for value, base in pairs if value is not None and base]
        if len(ratios) < len(pairs):
            return Outcome(trace, None, "cannot be tested", "the run has no such figure, or divides by nothing")
        value = min(ratios) if claim.take == "least" else max(ratios)
        return Outcome(trace, value, "agree" if agrees(value, claim) else "contradict")

    def _recall(self, name: str, trace: str) -> float | None:
        wanted = self.system.recalls[name]
        recorded = load_trace(self.traces[trace])
        if wanted.predictor not in recorded.predicted:
            return None
        counted = np.asarray(recorded.phase) == DECODE
        at_k = measure_recall(recorded, recorded.predicted[wanted.predictor], counted).at_k
        first, last = (layer % len(at_k) for layer in wanted.layers)
        return float(at_k[first : last + 1].mean())

    def _name_of_quality(self) -> str:
        return self.asked.sources.quality.name.removesuffix(stored.SUFFIX)

    def _costs(self, name: str | None) -> list[float | None] | None:
        return None if name is None else [self._cost(name)]

    def _cost(self, name: str) -> float | None:
        wanted = self.system.costs[name]
        quality = stored.load(beside(self.asked.sources_path, self.asked.sources.quality))
        return stored.cost_of(quality, wanted.policy, wanted.cache)


def metric_of(row: Row, metric: str) -> float | None:
    """A column of a row, or one column divided by another; None where there is no such figure."""
    values = [row[column] for column in columns_of(metric)]
    if any(not isinstance(value, int | float) for value in values):
        return None
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) == 1:
        return numbers[0]
    return numbers[0] / numbers[1] if numbers[1] else None
