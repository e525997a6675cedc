"""The rows of a sweep as the report reads them, and the questions that it asks of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from moesim.errors import ConfigError
from moesim.quality.stored import Interval, Quality
from moesim.result import SCHEMA

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A sweep's output folder, read."""

    rows: list[Row]
    sweep: dict[str, Any]
    timelines: list[dict[str, Any]]
    quality: dict[str, Quality] = field(default_factory=dict)
    """By trace, what lossy execution was measured to cost its model."""
    quality_of_another_model: frozenset[str] = frozenset()

    def cost(self, row: Row) -> Interval | None:
        """The relative increase of perplexity under a row's policy; zero where it is lossless, None where unknown."""
        if row["lossless"]:
            return Interval(value=0, low=0, high=0)
        quality = self.quality.get(row["trace"])
        return None if quality is None else quality.cost_of(row["policy"], row["cache_fraction"])

    def is_another_model(self, trace: str) -> bool:
        """Whether the costs of this trace's policies were measured on another model of the same shape."""
        return trace in self.quality_of_another_model

    @property
    def knows_costs(self) -> bool:
        """Whether the cost of any lossy policy was measured."""
        return any(self.cost(row) is not None for row in self.rows if not row["lossless"])

    def grid(self, name: str) -> list[Row]:
        """The rows of one grid."""
        return [row for row in self.rows if row["grid"] == name]

    @property
    def main_grid(self) -> list[Row]:
        """The grid with most policies on one machine, model, trace and context: what the first figures show."""
        best: list[Row] = []
        for name in dict.fromkeys(row["grid"] for row in self.rows):
            setting = [tuple(row[key] for key in (*SETTING, "arrived_per_s")) for row in self.grid(name)]
            common = Counter(setting).most_common(1)[0][0]
            rows = [row for row, each in zip(self.grid(name), setting, strict=True) if each == common]
            if len({row["policy"] for row in rows}) > len({row["policy"] for row in best}):
                best = rows
        return best

    @property
    def bandwidth_grid(self) -> list[Row]:
        """The rows of the first grid that varies the link's bandwidth and the cache, if there is one."""
        for name in dict.fromkeys(row["grid"] for row in self.rows):
            rows = self.grid(name)
            if len({row["link_bytes_per_s"] for row in rows}) > 1 and len({row["cache_fraction"] for row in rows}) > 1:
                return [row for row in rows if all(row[key] == rows[0][key] for key in SETTING[:-1])]
        return []

    @property
    def context_grid(self) -> list[Row]:
        """The rows of the first grid that varies the context, if there is one."""
        for name in dict.fromkeys(row["grid"] for row in self.rows):
            if len({row["context_tokens"] for row in self.grid(name)}) > 1:
                return self.grid(name)
        return []

    @property
    def load_grid(self) -> list[Row]:
        """The rows of the first grid that varies how fast requests come, if there is one."""
        for name in dict.fromkeys(row["grid"] for row in self.rows):
            rows = [row for row in self.grid(name) if row["arrived_per_s"] is not None]
            if len({row["arrived_per_s"] for row in rows}) > 1:
                return [row for row in rows if all(row[key] == rows[0][key] for key in (*SETTING, "max_batch"))]
        return []


SETTING = ("model", "hardware", "trace", "engine", "per_layer", "context_tokens", "link_bytes_per_s")
"""What rows of one figure have in common; the link comes last because one figure varies it."""


def read_results(out: Path) -> Results:
    """Read a sweep's output folder.

    Raises:
        ConfigError: there is no results.parquet, or it is not one of ours.
    """
    path = out / "results.parquet"
    try:
        table = pq.read_table(path)
        sweep = json.loads((out / "sweep.json").read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename or path}: no such file; `moesim sweep` writes it") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{out}: not the output of a sweep: {str(error).splitlines()[0]}") from None
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ConfigError(f"{path}: column {missing[0]!r} is missing")
    rows = [row for row in table.to_pylist() if row["tpot_mean_ns"] is not None]
    if not rows:
        raise ConfigError(f"{path}: no run measured a decode token")
    timelines = [json.loads(file.read_bytes()) for file in sorted((out / "timelines").glob("*.json"))]
    try:
        quality = {name: Quality.model_validate(each) for name, each in sweep.get("quality", {}).items()}
    except (ValidationError, AttributeError):
        raise ConfigError(f"{out / 'sweep.json'}: quality is not what `moesim quality` writes") from None
    return Results(rows, sweep, timelines, quality, frozenset(sweep.get("quality_of_another_model", ())))


def deployable(row: Row) -> bool:
    """Could be run: not a bound, and fits into the GPU's memory."""
    return bool(row["feasible"]) and not row["bound"]


def fastest(rows: Sequence[Row]) -> Row | None:
    """The row with the least TPOT; the first of equals."""
    return min(rows, key=lambda row: float(row["tpot_mean_ns"]), default=None)


def kind(row: Row) -> str:
    """What a reader must know of a policy before comparing it."""
    if row["bound"]:
        return "bound"
    return "lossless" if row["lossless"] else "lossy"
