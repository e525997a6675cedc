"""One paper's file, configs/published/NAME.yaml: its setting, the runs that stand for it, and its claims as data.

    title: Speculating Experts
    source: arXiv 2603.19289
    setting: Qwen3-30B-A3B in bf16, batch 1, on an RTX A6000
    traces: [reference-48x128]               # names of configs/published-traces.yaml
    axes: {hardware: rtx-a6000, context_tokens: 1024}     # of every run; any axis of a sweep but trace and model
    runs:
      on-demand: {policy: on-demand}         # a list of values makes several runs; a claim says which of them counts
      speculated: {policy: speculate-and-execute}
    claims:
      - id: tpot-1k
        says: Speculation takes 9 % off the time per token.
        source: table 2
        kind: ratio
        metric: tpot_mean_ns                 # a column of results.parquet, or one divided by another: A / B
        of: speculated
        over: on-demand
        published: 0.909
        tolerance: {relative: 0.03, because: the spread of repeated measurements is not published}

Beside `runs`, a claim may compare `recalls` (of a predictor of the trace, mean over layers) and `costs` (the increase
of perplexity that `moesim quality` has measured). A claim without a test says what is missing instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.config import Axes, over, read_axes, runs_of
from moesim.errors import ConfigError, nearest
from moesim.result import SCHEMA
from moesim.run_config import RunConfig
from moesim.yaml_file import line_of, read_model

Kind = Literal["ratio", "direction", "share", "count"]
Direction = Literal["less", "more", "same"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]
Range = tuple[float, float]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tolerance(_Data):
    """How far from the published value still counts as agreement, and why so far."""

    relative: float = Field(default=0.0, ge=0)
    absolute: float = Field(default=0.0, ge=0)
    because: str = Field(min_length=1)


class RecallOf(_Data):
    """Recall at top-k of a predictor, mean over decode tokens and over the layers from the first to the last named."""

    predictor: str
    layers: tuple[int, int]
    """First and last MoE layer, both counted; negative ones count from the end."""


class CostOf(_Data):
    """The relative increase of perplexity of a policy on the model whose quality was measured."""

    policy: str
    cache: float = Field(default=0.0, ge=0, le=1)


class Claim(_Data):
    """One statement of a paper in our words, and how it is tested."""

    id: Name
    says: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """Where the paper says it."""
    kind: Kind
    metric: str | None = None
    of: str | None = None
    over: str | None = None
    take: Literal["most", "least"] | None = None
    """Which value counts where `of` stands for several runs: for what a paper reaches at best, or `up to`."""
    traces: list[str] = []
    """Where it is tested; by default on the traces of the system."""
    published: Direction | float | Range | None = None
    as_published: str = ""
    """The paper's figure as it gives it, where that is not the tested number itself."""
    tolerance: Tolerance | None = None
    missing: str | None = None
    """What a test would need: a trace, a quality measurement, hardware. Then nothing is run."""
    why: str = ""
    """Why ours is not theirs, where it is not: found in the run, or said to be unknown."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> "Claim":
        if self.missing is not None:
            if self.of is not None or self.over is not None or self.metric is not None:
                raise ValueError("a claim with `missing` is not tested: it has no metric, of and over")
            return self
        if self.of is None:
            raise ValueError("of is missing: say what is measured, or what is `missing` for it")
        if self.published is None:
            raise ValueError("published is missing")
        if self.tolerance is None:
            raise ValueError("tolerance is missing")
        if (self.kind in ("ratio", "direction")) != (self.over is not None):
            raise ValueError(f"a {self.kind} {'needs' if self.over is None else 'has no'} over")
        if (self.kind == "direction") != isinstance(self.published, str):
            raise ValueError("a direction is published as less, more or same, anything else as a number or two")
        if isinstance(self.published, tuple) and self.published[0] > self.published[1]:
            raise ValueError("published begins above its end")
        return self


class System(_Data):
    """A file of configs/published/."""

    title: str
    source: str
    setting: str
    traces: list[str] = []
    axes: dict[str, Any] = {}
    runs: dict[Name, dict[str, Any]] = {}
    recalls: dict[Name, RecallOf] = {}
    costs: dict[Name, CostOf] = {}
    claims: list[Claim] = Field(min_length=1)

    def traces_of(self, claim: Claim) -> list[str]:
        """Where a claim is tested: once where what it compares does not depend on a trace."""
        return claim.traces or self.traces


def load_system(path: Path, known_traces: Mapping[str, object]) -> System:
    """Read one paper's file.

    Raises:
        ConfigError: an unknown key, run, trace, policy or metric, or a value that its key cannot have; in one line.
    """
    system = read_model(path, System)
    for name, given in system.runs.items():
        axes_of(system, name, path)
        for taken in ("trace", "model"):
            if taken in given or taken in system.axes:
                raise ConfigError(f"{path}{line_of(path, 'runs', name)}: runs.{name}: {taken} comes from the claim")
    _names(path, ("traces",), system.traces, known_traces, "trace")
    measured = [*system.runs, *system.recalls, *system.costs]
    if len(measured) != len(set(measured)):
        raise ConfigError(f"{path}: runs, recalls and costs share a name")
    ids: set[str] = set()
    for number, claim in enumerate(system.claims):
        place = ("claims", number)
        if claim.id in ids:
            raise ConfigError(f"{path}{line_of(path, *place, 'id')}: claims.{number}.id = {claim.id}: given twice")
        ids.add(claim.id)
        _names(path, (*place, "traces"), claim.traces, known_traces, "trace")
        for key in ("of", "over"):
            value = getattr(claim, key)
            if value is not None:
                _names(path, (*place, key), [value], measured, "run, recall or cost")
        if claim.missing is None:
            _check_metric(system, claim, path, number)
            if claim.of not in system.costs and not system.traces_of(claim):
                raise ConfigError(f"{path}{line_of(path, *place)}: claims.{number}: traces is missing, here and above")
    return system


def axes_of(system: System, run: str, path: Path) -> Axes:
    """The axes of a named run, checked, without trace and model."""
    above = read_axes(system.axes, path, "axes")
    given = read_axes(system.runs[run], path, "runs", run)
    return {"interval": [False]} | over(above, given)


def runs_named(system: System, run: str, path: Path, trace: Path, model: str) -> list[RunConfig]:
    """What a named run stands for on one trace.

    Raises:
        ConfigError: an axis is missing or cannot have its value.
    """
    axes = axes_of(system, run, path) | {"trace": [trace], "model": [model]}
    return list(runs_of("", axes, path, "runs", run))


def _names(
    path: Path, place: tuple[str | int, ...], given: list[str], known: Mapping[str, object] | list[str], what: str
) -> None:
    for name in given:
        if name not in known:
            where = f"{path}{line_of(path, *place)}: {'.'.join(map(str, place))} = {name}"
            raise ConfigError(f"{where}: unknown {what}: {nearest(name, known)}")


def _check_metric(system: System, claim: Claim, path: Path, number: int) -> None:
    where = f"{path}{line_of(path, 'claims', number)}: claims.{number}.metric"
    ran = [name in system.runs for name in (claim.of, claim.over) if name is not None]
    if any(ran) and not all(ran):
        raise ConfigError(f"{where}: {claim.of} and {claim.over} are not the same kind of thing")
    if all(ran):
        if claim.metric is None:
            raise ConfigError(f"{where} is missing: a column of results.parquet, or one divided by another")
        for column in columns_of(claim.metric):
            if column not in SCHEMA.names:
                raise ConfigError(f"{where} = {claim.metric}: unknown column: {nearest(column, SCHEMA.names)}")
    elif claim.metric is not None:
        raise ConfigError(f"{where} = {claim.metric}: only runs have a metric")


def columns_of(metric: str) -> list[str]:
    """The columns that a metric is made of: `A`, or `A / B`."""
    return [part.strip() for part in metric.split("/")]
