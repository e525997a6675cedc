"""What a sweep's YAML file may say, and the runs that it stands for.

    name: a6000
    trace: ../traces/reference-48x128.safetensors     # paths are relative to this file
    model: qwen3-30b-a3b
    hardware: rtx-a6000
    grids:
      policies: {policy: [on-demand, lru], cache: [0%, 25%], context_tokens: 1024}
      bandwidth: {policy: lru, cache: 25%, hardware.link_bytes_per_s: [25e9, 50e9], interval: false}

A grid is the product of every list that it gives, in the order in which it gives them; what it does not give comes
from above it. Whatever is wrong is found before anything runs, and named by file, line, key and value.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product
from math import prod
from os.path import normpath
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.catalogue import find, is_file
from moesim.device_choice import Asked
from moesim.errors import ConfigError, InputError, nearest
from moesim.hardware import FIGURES
from moesim.policies.composition import parse
from moesim.requests.arrivals import read_arrivals
from moesim.requests.serving import MOST_COUNTED, StreamConfig
from moesim.run_config import RunConfig
from moesim.yaml_file import check, line_of, read_yaml

MOST_RUNS = 1_000_000
"""Lists multiply: a few short ones would keep a machine busy for years, or fill its memory before it begins."""
HARDWARE = "hardware."
REST = "rest"
"""A cache that takes what dense weights and `kv_tokens` leave of the card."""
Axes = dict[str, list[Any]]
"""Every value of every axis, checked, in the order in which they were written."""


class PublishedFact(BaseModel):
    """A published figure, drawn beside ours; `grid`, `policy`, `context_tokens` and `cache` say beside which runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: str
    policy: str
    context_tokens: int | None = None
    cache: str | float = 0.0
    tpot_ns: int = Field(gt=0)
    copy_share: tuple[float, float] | None = None
    """The published range of the share of the time that copies take."""
    compute_share: tuple[float, float] | None = None
    source: str


class SweepConfig(BaseModel):
    """A sweep as it is written, its axes aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    grids: dict[str, dict[str, Any]] = Field(min_length=1)
    published: list[PublishedFact] = []
    timelines: list[dict[str, Any]] = []
    quality: dict[str, Path] = {}
    """By a trace's name, a file of `moesim quality` on another model of the same shape, relative to this file.

    For traces whose own model was never measured; the report says so wherever such a cost stands.
    """


@dataclass(frozen=True)
class Excerpt:
    """Some layers of one token of a run, for the report's Gantt chart."""

    run: RunConfig
    layers: tuple[int, int] | None
    """First and last; None takes the middle of the model."""


@dataclass(frozen=True)
class Sweep:
    """A sweep: what was written, and every run that it stands for, in order."""

    path: Path
    config: SweepConfig
    runs: list[RunConfig]
    timelines: list[Excerpt]

    @classmethod
    def load(cls, path: Path) -> "Sweep":
        """Read a sweep; runs that come to the same thing stand once in their grid.

        Raises:
            ConfigError: an unknown key, or a value that its key cannot have.
        """
        content = read_yaml(path)
        for key in content:
            if not (is_axis(key) or key in SweepConfig.model_fields):
                known = [*SweepConfig.model_fields, *AXES]
                raise ConfigError(f"{path}{line_of(path, key)}: unknown key {key!r}: {nearest(str(key), known)}")
        above = read_axes({key: value for key, value in content.items() if is_axis(key)}, path)
        config = check({key: value for key, value in content.items() if not is_axis(key)}, SweepConfig, path)
        runs: dict[str, RunConfig] = {}
        for grid, given in config.grids.items():
            for run in runs_of(grid, over(above, read_axes(given, path, "grids", grid)), path, "grids", grid):
                runs.setdefault(run.model_dump_json(), run)
        timelines = [_excerpt(given, above, path, number) for number, given in enumerate(config.timelines)]
        for number, fact in enumerate(config.published):
            _check_fact(fact, config.grids, path, number)
        return cls(path, config, list(runs.values()), timelines)


def cache_fraction(value: object) -> float:
    """`25%` or `0.25` as a fraction. Raises ConfigError outside 0 to 100 %."""
    text = str(value).strip()
    try:
        # In decimal, so that 12.3% and 0.123 are the same number.
        fraction = float(Decimal(text[:-1]).scaleb(-2) if text.endswith("%") else Decimal(text))
    except (InvalidOperation, ValueError):
        raise ConfigError("expected a share such as 25% or 0.25") from None
    if not 0 <= fraction <= 1:
        raise ConfigError("expected 0% to 100%")
    return fraction


def host_cache_fraction(value: object) -> float:
    """As `cache_fraction`. Raises ConfigError for 0 too: every copy passes through host memory."""
    fraction = cache_fraction(value)
    if not fraction:
        raise ConfigError("expected more than 0%: every copy passes through host memory")
    return fraction


def is_axis(key: object) -> bool:
    """Whether a key names an axis of a grid."""
    return key in AXES or str(key).startswith(HARDWARE)


# ---- the values of one axis


def _policy(value: object, path: Path) -> str:
    return parse(str(value)).name


def _trace(value: object, path: Path) -> Path:
    trace = Path(normpath(path.parent / str(value)))
    if not is_file(trace):
        raise ConfigError("no such file")
    return trace


def _cache(value: object, path: Path) -> float | str:
    """A share of all experts, or REST."""
    return REST if value == REST else cache_fraction(value)


def _arrivals(value: object, path: Path) -> Path:
    arrivals = Path(normpath(path.parent / str(value)))
    read_arrivals(arrivals)
    return arrivals


def _found(kind: str) -> Callable[[object, Path], str]:
    """A name of the catalogue, or a path relative to the sweep's file."""

    def found(value: object, path: Path) -> str:
        text = str(value)
        if "/" in text or text.endswith((".yaml", ".yml", ".json")):
            text = normpath(path.parent / text)
        find(kind, text)
        return text

    return found


def _whole(least: int, *, optional: bool = True) -> Callable[[object, Path], int | None]:
    def whole(value: object, path: Path) -> int | None:
        if value is None and optional:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"expected a whole number, {least} or more")
        if value > MOST_COUNTED:
            raise ConfigError(f"expected a whole number, at most {MOST_COUNTED:,}")
        return value

    return whole


def _yes_or_no(value: object, path: Path) -> bool:
    if not isinstance(value, bool):
        raise ConfigError("expected true or false")
    return value


def _figure(value: object, path: Path) -> float:
    try:
        return float(str(value))  # YAML 1.1 reads 25e9 as text
    except ValueError:
        raise ConfigError("expected a number") from None


def _rate(value: object, path: Path) -> float:
    rate = _figure(value, path)
    if not 0 < rate <= 1e9:
        raise ConfigError("expected requests per second, more than 0")
    return rate


def _device(value: object, path: Path) -> str:
    if value not in get_args(Asked):
        raise ConfigError(f"expected {', '.join(get_args(Asked))}")
    return str(value)


AXES: Mapping[str, Callable[[object, Path], Any]] = {
    "policy": _policy,
    "cache": _cache,
    "host_cache": lambda value, path: host_cache_fraction(value),
    "per_layer": _yes_or_no,
    "trace": _trace,
    "model": _found("models"),
    "hardware": _found("hardware"),
    "engine": _found("engines"),
    "context_tokens": _whole(1),
    "warmup_tokens": _whole(0, optional=False),
    "measured_tokens": _whole(1),
    "interval": _yes_or_no,
    "device": _device,
    "arrivals_per_s": _rate,
    "arrivals": _arrivals,
    "arrival_seed": _whole(0),
    "requests": _whole(1),
    "warmup_requests": _whole(0),
    "max_batch": _whole(1),
    "max_prefill_tokens": _whole(1),
    "kv_tokens": _whole(1),
}
"""What a grid may vary, and how each value is read. Beside these: `hardware.FIGURE`, any figure of the machine."""


def read_axes(given: Mapping[str, Any], path: Path, *place: str | int) -> Axes:
    """Axes as they are written somewhere in the file, each as a list of checked values."""
    axes: Axes = {}
    for key, values in given.items():
        key = str(key)
        figure = key.removeprefix(HARDWARE)
        if figure != key and figure not in FIGURES:
            raise ConfigError(f"{_at(path, *place, key)}: unknown figure of the hardware: {nearest(figure, FIGURES)}")
        if not is_axis(key):
            known = [*AXES, *(HARDWARE + name for name in FIGURES)]
            raise ConfigError(f"{_at(path, *place, key)}: unknown key: {nearest(key, known)}")
        if isinstance(values, list) and not values:
            raise ConfigError(f"{_at(path, *place, key)}: the list is empty")
        axes[key] = []
        for number, value in enumerate(values) if isinstance(values, list) else [(None, values)]:
            try:
                axes[key].append(AXES.get(key, _figure)(value, path))
            except InputError as error:
                where = f"{path}{line_of(path, *place, key, *(() if number is None else (number,)))}"
                raise ConfigError(f"{where}: {'.'.join(map(str, (*place, key)))} = {value}: {error}") from None
    return axes


def over(above: Axes, given: Axes) -> Axes:
    """What is given, in its order, behind what is only said above."""
    return {key: values for key, values in above.items() if key not in given} | given


def runs_of(grid: str, axes: Axes, path: Path, *place: str | int) -> Iterator[RunConfig]:
    """One run for every combination."""
    for key in ("policy", "trace", "model", "hardware"):
        if key not in axes:
            raise ConfigError(f"{_at(path, *place)}: {key} is missing, here and above")
    runs = prod(map(len, axes.values()))
    if runs > MOST_RUNS:
        raise ConfigError(f"{_at(path, *place)}: {runs:,} runs: a grid has at most {MOST_RUNS:,}")
    for combination in product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        overrides = {key.removeprefix(HARDWARE): values.pop(key) for key in axes if key.startswith(HARDWARE)}
        values["host_cache_fraction"] = values.pop("host_cache", 1.0)
        wished = values.pop("cache", 0.0)
        size = {"any": wished, "none": 0.0, "all": 1.0}[parse(values["policy"]).spec.cache]
        rest = size == REST
        fraction = 0.0 if rest else size
        if not (0 < fraction < 1 or rest):
            values["per_layer"] = False  # nothing to split
        of_stream = {key: values.pop(key) for key in [*values] if key in StreamConfig.model_fields}
        of_stream = {key: value for key, value in of_stream.items() if value is not None}
        try:
            stream = StreamConfig(**of_stream, cache_rest=rest) if of_stream or rest else None
        except ValidationError as error:
            found = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{_at(path, *place)}: {found}") from None
        yield RunConfig(
            **values, cache_fraction=fraction, hardware_overrides=overrides, stream=stream, grid=grid
        )


def _excerpt(given: Mapping[str, Any], above: Axes, path: Path, number: int) -> Excerpt:
    """A timeline's run: axes with one value each, and the layers to show."""
    place = ("timelines", number)
    layers = given.get("layers")
    if layers is not None and not (
        isinstance(layers, list) and len(layers) == 2 and all(type(each) is int for each in layers)
        and 0 <= layers[0] <= layers[1]
    ):
        raise ConfigError(f"{_at(path, *place, 'layers')} = {layers}: expected [FIRST, LAST]")
    axes = over(above, read_axes({key: value for key, value in given.items() if key != "layers"}, path, *place))
    axes |= {"interval": [False], "device": ["auto"]}
    runs = list(runs_of("timelines", axes, path, *place))
    if len(runs) != 1:
        raise ConfigError(f"{_at(path, *place)}: {len(runs)} runs; a timeline shows one")
    return Excerpt(runs[0], None if layers is None else (layers[0], layers[1]))


def _check_fact(fact: PublishedFact, grids: Mapping[str, object], path: Path, number: int) -> None:
    """Raise ConfigError if a published figure cannot stand beside any run."""
    place = ("published", number)
    if fact.grid not in grids:
        raise ConfigError(f"{_at(path, *place, 'grid')} = {fact.grid}: unknown grid: {nearest(fact.grid, grids)}")
    for key, read in (("policy", parse), ("cache", cache_fraction)):
        value = getattr(fact, key)
        try:
            read(value)
        except InputError as error:
            raise ConfigError(f"{_at(path, *place, key)} = {value}: {error}") from None


def _at(path: Path, *place: str | int) -> str:
    """`FILE:LINE: key.key`, for the head of an error."""
    return f"{path}{line_of(path, *place)}: {'.'.join(map(str, place))}"
