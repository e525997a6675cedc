"""docs/tournament-tables.md: every ranking of a tournament, and the files that are written beside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.atomic_write import atomic_write
from moesim.hardware import HardwareSpec
from moesim.published.standings import Standing, number, short_name, slower_than_best, standings, system_of, tpot_ns
from moesim.published.tournament import Played
from moesim.result import SCHEMA
from moesim.sweep_tasks import Row

SHOWN = 3
"""Systems shown of each ranking."""
KEPT = (
    "trace", "model", "hardware", "policy", "engine", "per_layer", "cache_fraction", "feasible", "lossless", "bound",
    "weight_executed", "tpot_mean_ns", "hit_rate", "bytes_per_token",
)
"""The columns of a result that are kept in results.parquet; the sweeps' own folders have all."""
INTRODUCTION = """# The tournament in tables

Written by `moesim tournament`; what follows from it, in words: [tournament.md](tournament.md). Milliseconds per output
token at the centre of the profiles' figures. A star: the policy reads what the router will choose, as a synthetic
predictor of fixed accuracy, or as a gate that is trained to foresee (`pre-gated`). Only what fits the card is ranked;
the time with all experts resident is in brackets where they do not fit.
"""
STAR = r"\*"


def card_words(card: str) -> str:
    """A card as people call it."""
    return HardwareSpec.load(card).title.removeprefix("NVIDIA ")


def write(played: Played, out: Path) -> list[Path]:
    """Tables, figure and results into `out`. Returns what was written.

    Raises:
        InputError: a file cannot be written.
    """
    from moesim.published.tournament_figure import draw  # matplotlib takes its time
    from moesim.report.figures.canvas import save

    places = standings(played.rows)
    with atomic_write(out / "tables.md") as file:
        file.write("\n".join(page(played, places)).encode())
    added = [pa.field(name, pa.bool_()) for name in ("copies_only", "reads_ahead")]
    kept = pa.schema([*(SCHEMA.field(name) for name in KEPT), *added])
    table = pa.Table.from_pylist(played.rows, schema=kept)
    with atomic_write(out / "results.parquet") as file:
        pq.write_table(table, file, compression="zstd")
    save(draw(places, played.titles), out, "best")
    return [out / "tables.md", out / "results.parquet", out / "best.png"]


def page(played: Played, places: Sequence[Standing]) -> Iterator[str]:
    """The whole page, line by line."""
    yield INTRODUCTION
    yield from _every_system(played, places)
    yield from _distances(played, places)
    for trace, title in played.titles.items():
        here = [place for place in places if place.trace == trace]
        yield f"## {title}\n"
        yield from _lossless(here)
        yield from _lossy(here)
        yield from _left_out(played, trace)


def _every_system(played: Played, places: Sequence[Standing]) -> Iterator[str]:
    """One line a system, the fastest over all traces first."""
    ratios = slower_than_best(places)
    rows = {system_of(row): row for row in played.rows if not row["bound"]}
    traces = list(played.titles)

    def over_traces(system: str) -> float:
        of = [ratios[system, trace] for trace in traces if (system, trace) in ratios]
        return sum(of) / len(of) if of else float("inf")

    yield "## Every system\n"
    yield "Time over that of the fastest lossless system at the same place, median over cards and cache sizes."
    yield "–: not on this trace.\n"
    yield f"| system | | {' | '.join(f'`{trace}`' for trace in traces)} |"
    yield "|---" * (len(traces) + 2) + "|"
    for system in sorted(rows, key=over_traces):
        cells = [f"{ratios[system, trace]:.2f}" if (system, trace) in ratios else "–" for trace in traces]
        yield f"| `{system}` | {'lossless' if rows[system]['lossless'] else 'lossy'} | {' | '.join(cells)} |"
    yield ""


def _distances(played: Played, places: Sequence[Standing]) -> Iterator[str]:
    """Least to most over the cards."""
    yield "## How far the best is from the bounds\n"
    yield "Ratios of times, least to most over the cards.\n"
    columns = "best lossless / all resident | best that copies / optimal eviction | best lossy / best lossless"
    yield f"| trace | cache | {columns} |"
    yield "|---|---|---|---|---|"
    for trace in played.titles:
        for cache in sorted({place.cache for place in places if place.trace == trace}):
            here = [place for place in places if (place.trace, place.cache) == (trace, cache)]
            cells = [
                _range([(place.lossless, place.all_resident) for place in here]),
                _range([(place.copying, place.optimal_eviction) for place in here]),
                _range([(place.lossy, place.lossless[0] if place.lossless else None) for place in here]),
            ]
            yield f"| `{trace}` | {100 * cache:g} % | {' | '.join(cells)} |"
    yield ""


def _range(pairs: Sequence[tuple[list[Row], Row | None]]) -> str:
    ratios = [tpot_ns(rows[0]) / tpot_ns(base) for rows, base in pairs if rows and base is not None]
    if not ratios:
        return "–"
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return least if least == most else f"{least} to {most}"


def _lossless(places: Sequence[Standing]) -> Iterator[str]:
    yield "Lossless:\n"
    yield f"| card | cache | {_ranks()} | best that copies | optimal eviction | all resident |"
    yield "|---" * (SHOWN + 5) + "|"
    for place in places:
        bounds = [_bound(place.optimal_eviction), _bound(place.all_resident)]
        cells = [*_first(place.lossless, SHOWN), *_first(place.copying, 1), *bounds]
        yield f"| {card_words(place.card)} | {100 * place.cache:g} % | {' | '.join(cells)} |"
    yield ""


def _lossy(places: Sequence[Standing]) -> Iterator[str]:
    yield "Lossy, with the share of the router's weight that is executed (of its choices, without recorded weights):\n"
    yield f"| card | cache | {_ranks()} |"
    yield "|---" * (SHOWN + 2) + "|"
    for place in places:
        yield f"| {card_words(place.card)} | {100 * place.cache:g} % | {' | '.join(_first(place.lossy, SHOWN))} |"
    yield ""


def _left_out(played: Played, trace: str) -> Iterator[str]:
    """Who is not there, by reason."""
    reasons: dict[str, list[str]] = {}
    for each in played.left_out[trace]:
        sizes = f" (at {', '.join(f'{100 * cache:g} %' for cache in each.caches)})" if each.caches else ""
        reasons.setdefault(each.reason, []).append(f"`{short_name(each.policy)}`{sizes}")
    if reasons:
        yield "Not there:\n"
    for reason, systems in reasons.items():
        yield f"- {', '.join(systems)}: {reason}"
    yield ""


def _ranks() -> str:
    return " | ".join(f"{rank}." for rank in range(1, SHOWN + 1))


def _first(rows: Sequence[Row], count: int) -> list[str]:
    return [_system(row) for row in rows[:count]] + ["–"] * (count - len(rows))


def _system(row: Row) -> str:
    executed = "" if row["lossless"] else f", {100 * number(row, 'weight_executed'):.1f} %"
    return f"`{system_of(row)}`{STAR if row['reads_ahead'] else ''} {_milliseconds(row)}{executed}"


def _bound(row: Row | None) -> str:
    if row is None:
        return "–"
    return _milliseconds(row) if row["feasible"] else f"({_milliseconds(row)})"


def _milliseconds(row: Row) -> str:
    return f"{tpot_ns(row) / 1e6:.1f}"
