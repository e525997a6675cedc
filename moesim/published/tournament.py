"""docs/tournament.md: every system of a sweep by card and cache size, lossless and lossy apart, beside the bounds.

    moesim sweep configs/tournament.yaml
    python -m moesim.published.tournament runs/tournament > docs/tournament.md
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from moesim.errors import ConfigError
from moesim.sweep_tasks import Row

SHOWN = 4
"""Systems shown of each place."""


def read_rows(folder: Path) -> list[Row]:
    """The rows of a sweep. Raises ConfigError where it has left none."""
    path = folder / "results.parquet"
    if not path.exists():
        raise ConfigError(f"{path}: no such file; moesim sweep writes it")
    return list(pq.read_table(path).to_pylist())


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lossless and lossy systems apart: one line for each card and cache size, the fastest first, then the bounds."""
    sizes = {(str(row["hardware"]), _number(row, "cache_fraction")) for row in rows if _ranked(row)}
    places = sorted(place for place in sizes if place[1] > 0)
    ranks = " | ".join(f"{rank}." for rank in range(1, SHOWN + 1))
    kinds = {"Lossless": True, "Lossy, with the share of the router's weight that is executed": False}
    for title, lossless in kinds.items():
        yield f"### {title}\n"
        yield f"| card | cache | {ranks} | belady | all resident |"
        yield "|---" * (SHOWN + 4) + "|"
        for hardware, cache in places:
            here = [row for row in rows if row["hardware"] == hardware]
            # Without a cache of its own, a system competes at every size.
            fits = [
                row for row in here
                if _ranked(row) and row["lossless"] is lossless and _number(row, "cache_fraction") in (0.0, cache)
            ]
            fastest = sorted(fits, key=lambda row: _number(row, "tpot_mean_ns"))[:SHOWN]
            cells = [_system(row) for row in fastest] + ["–"] * (SHOWN - len(fastest))
            bounds = [_bound(here, "belady", cache), _bound(here, "all-resident", 1.0)]
            yield f"| {hardware} | {100 * cache:g} % | " + " | ".join(cells + bounds) + " |"
        yield ""


def _ranked(row: Row) -> bool:
    """Whether a row may be ranked: it fits the card and is no bound."""
    return bool(row["feasible"]) and not row["bound"]


def _number(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, int | float), column
    return float(value)


def _system(row: Row) -> str:
    executed = "" if row["lossless"] else f", {100 * _number(row, 'weight_executed'):.1f} %"
    return f"`{row['policy']}` {_milliseconds(row)}{executed}"


def _bound(rows: Sequence[Row], policy: str, cache: float) -> str:
    found = [row for row in rows if row["policy"] == policy and _number(row, "cache_fraction") == cache]
    return _milliseconds(found[0]) if found else "–"


def _milliseconds(row: Row) -> str:
    return f"{_number(row, 'tpot_mean_ns') / 1e6:.1f}"


if __name__ == "__main__":
    print("\n".join(tables(read_rows(Path(sys.argv[1])))))
