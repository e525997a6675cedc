"""Who is ranked where: by trace, card and cache size, lossless and lossy systems apart, beside the bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from moesim.policies.composition import split_call
from moesim.sweep_tasks import Row

BOUNDS = ("belady", "all-resident")


@dataclass(frozen=True)
class Standing:
    """One place: a trace, a card and a cache size. Fastest first; only what fits the card."""

    trace: str
    card: str
    cache: float
    lossless: list[Row]
    lossy: list[Row]
    optimal_eviction: Row | None
    all_resident: Row | None

    @property
    def copying(self) -> list[Row]:
        """Lossless systems that leave the CPU out."""
        return [row for row in self.lossless if row["copies_only"]]


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Every place at which some system fits the card: traces and cards in the order of the rows, small caches first."""
    found = []
    for trace in dict.fromkeys(str(row["trace"]) for row in rows):
        of_trace = [row for row in rows if row["trace"] == trace]
        for card in dict.fromkeys(str(row["hardware"]) for row in of_trace):
            here = [row for row in of_trace if row["hardware"] == card]
            ranked = sorted((row for row in here if row["feasible"] and not row["bound"]), key=tpot_ns)
            for cache in sorted({number(row, "cache_fraction") for row in ranked} - {0.0}):
                # Without a cache of its own, a system competes at every size.
                fits = [row for row in ranked if row["cache_fraction"] in (0.0, cache)]
                found.append(Standing(
                    trace, card, cache,
                    [row for row in fits if row["lossless"]], [row for row in fits if not row["lossless"]],
                    _bound(here, "belady", cache), _bound(here, "all-resident", 1.0),
                ))
    return found


def _bound(rows: Sequence[Row], policy: str, cache: float) -> Row | None:
    return next((row for row in rows if row["policy"] == policy and row["cache_fraction"] == cache), None)


def slower_than_best(places: Sequence[Standing]) -> dict[tuple[str, str], float]:
    """By system and trace: the median, over cards and cache sizes, of its time over that of the best lossless one."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for place in places:
        if place.lossless:
            best = tpot_ns(place.lossless[0])
            for row in (*place.lossless, *place.lossy):
                ratios.setdefault((system_of(row), place.trace), []).append(tpot_ns(row) / best)
    return {key: median(values) for key, values in ratios.items()}


def system_of(row: Row) -> str:
    """A policy's name and parameters, but not where its predictions come from."""
    return short_name(str(row["policy"]))


def short_name(policy: str) -> str:
    """As `system_of`, of a policy's text."""
    name, arguments = split_call(policy)
    rest = ",".join(f"{key}={value}" for key, value in arguments.items() if key != "predictor")
    return f"{name}[{rest}]" if rest else name


def tpot_ns(row: Row) -> float:
    """Mean time per output token."""
    return number(row, "tpot_mean_ns")


def number(row: Row, column: str) -> float:
    """A column that always holds a number."""
    value = row[column]
    assert isinstance(value, int | float), column
    return float(value)
