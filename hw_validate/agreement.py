"""How well the simulator agrees with the machine: its error, its order of policies, its decisions, the outputs.

Order of policies: within one model, cache size, phase and batch, every pair of policies whose measured intervals have
nothing in common must be ordered alike in the simulation. Pairs with overlapping intervals have no measured order.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from hw_validate.comparison import Row
from hw_validate.interval import Interval

TARGET_MEDIAN = 0.03
TARGET_WORST = 0.08
"""The most that median and worst absolute error of the TPOT may be, calibrated on microbenchmarks alone."""

GROUP = ("model", "layers", "trace", "context_tokens", "cache_fraction", "phase", "batch_tokens")
"""What two policies must have in common for their order to mean something."""
SAME_OUTPUT = ("model", "layers", "trace", "context_tokens", "phase", "batch_tokens", "output_steps")
"""What two lossless cells must have in common for their outputs to be equal."""


@dataclass(frozen=True)
class Errors:
    """Absolute errors of the TPOT over some cells."""

    cells: int
    median: float
    worst: float
    worst_row: Row

    @property
    def median_met(self) -> bool:
        """Median within its target."""
        return self.median <= TARGET_MEDIAN

    @property
    def worst_met(self) -> bool:
        """Worst within its target."""
        return self.worst <= TARGET_WORST


@dataclass(frozen=True)
class Ranking:
    """Pairs of policies of one group each."""

    pairs: int
    overlapping: int
    """Pairs without a measured order: their intervals overlap, or one of them has none."""
    different: list[tuple[Row, Row]]
    """Pairs that the simulation orders otherwise, or calls equal; the faster in measurement first."""

    @property
    def ordered(self) -> int:
        """Pairs that the measurement orders."""
        return self.pairs - self.overlapping

    @property
    def alike(self) -> int:
        """... and the simulation orders the same way."""
        return self.ordered - len(self.different)


@dataclass(frozen=True)
class Outputs:
    """Final hidden states of lossless cells, by their hash."""

    groups: int
    """Groups of at least two lossless cells that must agree."""
    cells: int
    """Cells in those groups."""
    different: list[list[Row]]
    """Groups whose cells do not agree."""


def errors(rows: Sequence[Row]) -> Errors:
    """Median and worst absolute error of at least one cell."""
    worst = max(rows, key=lambda row: abs(row["tpot_error"]))
    return Errors(len(rows), median(abs(row["tpot_error"]) for row in rows), abs(worst["tpot_error"]), worst)


def errors_by(rows: Iterable[Row], *keys: str) -> dict[tuple[object, ...], Errors]:
    """Errors of the rows that share the values of some columns, by these values."""
    return {values: errors(group) for values, group in grouped(rows, keys).items()}


def ranking(rows: Iterable[Row]) -> Ranking:
    """Compare the order of every pair of policies."""
    pairs, overlapping, different = 0, 0, []
    for group in grouped(rows, GROUP).values():
        for pair in combinations(group, 2):
            pairs += 1
            first, second = (_interval(row) for row in pair)
            if first is None or second is None or not first.disjoint(second):
                overlapping += 1
                continue
            faster, slower = sorted(pair, key=lambda row: float(row["tpot_measured_ns"]))
            if not faster["tpot_simulated_ns"] < slower["tpot_simulated_ns"]:
                different.append((faster, slower))
    return Ranking(pairs, overlapping, different)


def outputs(rows: Iterable[Row]) -> Outputs:
    """Compare the outputs of lossless cells that ran the same tokens."""
    hashed = (row for row in rows if row["lossless"] and row["output_sha256"])
    groups = [group for group in grouped(hashed, SAME_OUTPUT).values() if len(group) > 1]
    different = [group for group in groups if len({row["output_sha256"] for row in group}) > 1]
    return Outputs(len(groups), sum(map(len, groups)), different)


def grouped(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[object, ...], list[Row]]:
    """Rows by the values of some columns, in order of first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return dict(groups)


def _interval(row: Row) -> Interval | None:
    low, high = row["tpot_measured_low_ns"], row["tpot_measured_high_ns"]
    return None if low is None or high is None else Interval(low, high, row["tpot_measured_block_steps"])
