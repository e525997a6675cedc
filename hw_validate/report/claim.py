"""The paper's claim on this card: what speculation saves over copying on demand, and what a plain cache saves."""

from collections.abc import Sequence

from hw_validate.agreement import grouped
from hw_validate.comparison import Row
from hw_validate.report.section import Entry, Section, Table
from hw_validate.report.words import model_words, setting_words
from moesim.report.words import milliseconds, percent, policy_words

PUBLISHED = (0.05, 0.14)
"""Reduction of the TPOT by speculation over on-demand copies, at batch 1: the overall claim of arXiv 2603.19289."""
SETTING = ("model", "layers", "trace", "context_tokens", "batch_tokens")
INSTEAD = "lru"


def claim_section(rows: Sequence[Row]) -> Section:
    """For each model and batch with an on-demand cell: the policies without a cache, and LRU with one."""
    groups, sentences = [], []
    for group in grouped((row for row in rows if row["phase"] == "decode"), SETTING).values():
        demand = next((row for row in group if row["policy"] == "on-demand"), None)
        others = [row for row in group if row is not demand and _belongs(row)]
        if demand is None or not others:
            continue
        name = f"{model_words(demand['model'])}, {setting_words('decode', demand['batch_tokens'])}"
        groups.append((name, [_row(row, demand) for row in [demand, *others]]))
        sentences += _sentence(name, demand, others)
    low, high = PUBLISHED
    columns = ["policy", "cache", "measured", "less than on demand, measured", "less, simulated", "outputs"]
    return Section(
        "What speculation saves, and what a cache would",
        f"Published: {100 * low:.0f} to {percent(high)} less time per output token by speculation than on demand, "
        "both without a cache, one sequence (arXiv 2603.19289). Beside it: an LRU cache in the memory that they leave "
        "idle.",
        sentences=sentences,
        tables=[Table(columns, groups)] if groups else [],
    )


def reduction(row: Row, demand: Row, world: str) -> float:
    """The share of the on-demand time that a policy saves, in one world."""
    return 1 - float(row[f"tpot_{world}_ns"]) / float(demand[f"tpot_{world}_ns"])


def _belongs(row: Row) -> bool:
    return bool(row["policy"] == INSTEAD or row["cache_fraction"] == 0)


def _row(row: Row, demand: Row) -> list[Entry]:
    saved = [
        "–" if row is demand else percent(round(reduction(row, demand, world), 3))
        for world in ("measured", "simulated")
    ]
    return [
        Entry(policy_words(row["policy"])),
        Entry(percent(row["cache_fraction"])),
        Entry(milliseconds(row["tpot_measured_ns"])),
        *map(Entry, saved),
        Entry("lossless" if row["lossless"] else "lossy"),
    ]


def _saves(saved: float) -> str:
    return f"saves {percent(round(saved, 3))}" if saved >= 0 else f"takes {percent(round(-saved, 3))} more"


def _place(saved: float, demand: Row) -> str:
    """Where a saving lies beside what was published, which is about single sequences."""
    if demand["batch_tokens"] != 1:
        return ""
    inside = PUBLISHED[0] <= round(saved, 3) <= PUBLISHED[1]
    return f", {'inside' if inside else 'outside'} the published range,"


def _sentence(name: str, demand: Row, others: Sequence[Row]) -> list[str]:
    speculated = next((row for row in others if row["policy"] == "speculate-and-execute"), None)
    cached = [row for row in others if row["policy"] == INSTEAD and row["cache_fraction"] > 0]
    parts = []
    if speculated is not None:
        saved = reduction(speculated, demand, "measured")
        parts.append(f"speculation {_saves(saved)}{_place(saved, demand)} and is lossy")
    if cached:
        savings = " / ".join(percent(round(reduction(row, demand, "measured"), 3)) for row in cached)
        sizes = " / ".join(percent(row["cache_fraction"]) for row in cached)
        parts.append(f"an LRU cache of {sizes} of the experts saves {savings} and is lossless")
    return [f"{name}: {'; '.join(parts)}."] if parts else []
