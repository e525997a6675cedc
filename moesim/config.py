"""What a sweep's YAML file may say, and the runs that it stands for.

    name: a6000
    trace: ../traces/reference-48x128.safetensors     # relative to this file
    model: qwen3-30b-a3b
    hardware: rtx-a6000
    grids:
      policies: {policy: [on-demand, lru], cache: [0%, 25%], context_tokens: 1024}
      bandwidth: {policy: lru, cache: 25%, hardware.link_bytes_per_s: [25e9, 50e9], interval: false}

A grid is the product of every list that it gives, in the order in which it gives them; what it does not give comes
from above it.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.errors import ConfigError, nearest
from moesim.hardware import FIGURES
from moesim.policies.composition import parse
from moesim.run import RunConfig
from moesim.yaml_file import read_model

HARDWARE = "hardware."
AXES = (
    "policy", "cache", "trace", "model", "hardware", "engine", "context_tokens", "per_layer", "warmup_tokens",
    "measured_tokens", "interval",
)


class PublishedFact(BaseModel):
    """A published figure, drawn beside ours. Its keys say which runs it stands beside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: str
    policy: str
    context_tokens: int | None = None
    cache_fraction: float = 0.0
    tpot_ns: int = Field(gt=0)
    source: str


class TimelineWish(BaseModel):
    """Some layers of one token of a run, for the report's Gantt chart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    cache: str | float = 0.0
    context_tokens: int | None = None
    layers: tuple[int, int] = (20, 22)


class SweepConfig(BaseModel):
    """A sweep as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    trace: str | list[str]
    model: str | list[str]
    hardware: str | list[str]
    engine: str | list[str] = "yalis"
    context_tokens: int | list[int] | None = None
    warmup_tokens: int = 64
    measured_tokens: int | None = None
    grids: dict[str, dict[str, Any]] = Field(min_length=1)
    published: list[PublishedFact] = []
    timelines: list[TimelineWish] = []

    @classmethod
    def load(cls, path: Path) -> "SweepConfig":
        """Read a sweep. Raises ConfigError that names file, key and value."""
        return read_model(path, cls)

    def runs(self, path: Path) -> list[RunConfig]:
        """Every run in order; runs that come to the same thing stand once in their grid.

        Raises:
            ConfigError: an unknown axis, or a value that it cannot have.
        """
        runs: dict[str, RunConfig] = {}
        for grid, axes in self.grids.items():
            for values in self._product(grid, axes, path):
                run = self._run(grid, values, path)
                runs.setdefault(run.model_dump_json(), run)
        return list(runs.values())

    def timeline_run(self, wish: TimelineWish, path: Path) -> RunConfig:
        """The run that a timeline is taken from."""
        values: dict[str, Any] = {"policy": wish.policy, "cache": wish.cache, "interval": False}
        if wish.context_tokens is not None:
            values["context_tokens"] = wish.context_tokens
        for values_of_one in self._product("timelines", values, path):
            return self._run("timelines", values_of_one, path)
        raise ConfigError(f"{path}: timelines: {wish.policy} names no run")

    def _product(self, grid: str, axes: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
        above: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("trace", "model", "hardware", "engine", "context_tokens", "warmup_tokens", "measured_tokens")
        }
        for key in axes:
            if key.startswith(HARDWARE):
                if key.removeprefix(HARDWARE) not in FIGURES:
                    raise ConfigError(f"{path}: grids.{grid}.{key}: unknown figure: "
                                      f"{nearest(key.removeprefix(HARDWARE), FIGURES)}")
            elif key not in AXES:
                known = [*AXES, *(HARDWARE + figure for figure in FIGURES)]
                raise ConfigError(f"{path}: grids.{grid}: unknown key {key!r}: {nearest(key, known)}")
        if "policy" not in axes:
            raise ConfigError(f"{path}: grids.{grid}: policy is missing")
        together = {**above, **axes}
        lists = [value if isinstance(value, list) else [value] for value in together.values()]
        for key, value in zip(together, lists, strict=True):
            if not value:
                raise ConfigError(f"{path}: grids.{grid}.{key}: the list is empty")
        for values in product(*lists):
            yield dict(zip(together, values, strict=True))

    def _run(self, grid: str, values: dict[str, Any], path: Path) -> RunConfig:
        where = f"{path}: grids.{grid}"
        overrides = {
            key.removeprefix(HARDWARE): _number(value, f"{where}.{key}")
            for key, value in values.items()
            if key.startswith(HARDWARE)
        }
        policy = str(values["policy"])
        always: dict[Literal["any", "none", "all"], float | None] = {"any": None, "none": 0.0, "all": 1.0}
        fixed = always[parse(policy).spec.cache]
        fraction = cache_fraction(values.get("cache", 0.0), f"{where}.cache") if fixed is None else fixed
        fields = {key: values[key] for key in ("model", "hardware", "engine") if key in values}
        optional = {
            key: values[key]
            for key in ("context_tokens", "per_layer", "warmup_tokens", "measured_tokens", "interval")
            if key in values
        }
        try:
            return RunConfig(
                trace=path.parent / str(values["trace"]), policy=policy, cache_fraction=fraction, grid=grid,
                hardware_overrides=overrides, **fields, **optional,
            )
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            key = ".".join(map(str, found["loc"]))
            raise ConfigError(f"{where}.{key} = {found['input']!r}: {found['msg']}") from None


def cache_fraction(value: object, where: str) -> float:
    """`25%` or `0.25` as a fraction. Raises ConfigError outside 0 to 100 %."""
    text = str(value).strip()
    try:
        fraction = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ConfigError(f"{where} = {value!r}: expected a share such as 25% or 0.25") from None
    if not 0 <= fraction <= 1:
        raise ConfigError(f"{where} = {value!r}: expected 0 % to 100 %")
    return fraction


def _number(value: object, where: str) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ConfigError(f"{where} = {value!r}: expected a number") from None
