"""The simulator's error: over all cells, by model and setting, and cell by cell."""

from collections.abc import Callable, Sequence

from hw_validate.agreement import TARGET_MEDIAN, TARGET_WORST, Errors, errors, errors_by, grouped
from hw_validate.comparison import Row
from hw_validate.report.section import Entry, Picture, Section, Table
from hw_validate.report.words import (
    cell_words,
    model_words,
    setting_words,
    signed_percent,
    throttle_words,
    two_decimals,
)
from moesim.report.words import percent, policy_words


def error_section(rows: Sequence[Row], pictures: list[Picture]) -> Section:
    """Median and worst error, and whether they meet their targets."""
    summary = [_summary("all cells", errors(rows))]
    for (model,), found in errors_by(rows, "model").items():
        summary.append(_summary(model_words(str(model)), found))
    for (phase, batch), found in errors_by(rows, "phase", "batch_tokens").items():
        summary.append(_summary(setting_words(phase, batch), found))
    return Section(
        "How far off the simulator is",
        "Error: simulated time per step over measured time per step, less one. A step is one token of every sequence "
        "in decoding, the pass over a prompt in prefill. The simulator knows this machine by microbenchmarks alone. "
        f"Targets: median at most {percent(TARGET_MEDIAN)}, worst at most {percent(TARGET_WORST)}.",
        pictures=pictures,
        tables=[Table.plain(["cells of", "cells", "median error", "worst error", "worst in"], summary)],
    )


def _summary(name: str, found: Errors) -> list[Entry]:
    return [
        Entry(name),
        Entry(str(found.cells)),
        Entry(two_decimals(found.median), "good" if found.median_met else "bad"),
        Entry(two_decimals(found.worst), "good" if found.worst_met else "bad"),
        Entry(cell_words(found.worst_row)),
    ]


def cells_section(rows: Sequence[Row]) -> Section:
    """Every cell, grouped by model and setting."""
    groups = []
    for group in grouped(rows, (*GROUP, "phase", "batch_tokens")).values():
        setting = setting_words(group[0]["phase"], group[0]["batch_tokens"])
        groups.append((f"{group_words(group[0])}; {setting}", [_cell(row) for row in group]))
    columns = [
        "policy", "cache", "measured, ms", "simulated, ms", "error", "hits", "misses", "copied, GB per step",
        "decisions", "notes",
    ]
    return Section(
        f"Cell by cell ({len(rows)})",
        "Times are means of the measured steps, in brackets the 95 % bootstrap interval of that mean. Hits and misses "
        "are of all measured steps; one number means that it is the same in both worlds.",
        tables=[Table(columns, groups)],
    )


GROUP = ("model", "layers", "trace", "synthetic")


def group_words(row: Row) -> str:
    """A model as it was run: what was shortened and what is synthetic is said with its name."""
    layers = f"{row['layers']} layers"
    if row["layers"] < row["layers_of_model"]:
        layers = f"{row['layers']} of its {row['layers_of_model']} layers"
    trace = f"synthetic trace {row['trace']}" if row["synthetic"] else f"trace {row['trace']}"
    return f"{model_words(row['model'])}: {layers}, {trace}"


def _cell(row: Row) -> list[Entry]:
    size = abs(row["tpot_error"])
    mark = "good" if size <= TARGET_MEDIAN else "poor" if size <= TARGET_WORST else "bad"
    steps = row["steps_measured"]
    return [
        Entry(policy_words(row["policy"])),
        Entry(percent(row["cache_fraction"])),
        Entry(measured_words(row)),
        Entry(f"{row['tpot_simulated_ns'] / 1e6:,.2f}"),
        Entry(signed_percent(row["tpot_error"]), mark),  # type: ignore[arg-type]
        _both(row["hits_measured"], row["hits_simulated"], lambda count: f"{count:,}"),
        _both(row["misses_measured"], row["misses_simulated"], lambda count: f"{count:,}"),
        _both(row["bytes_measured"], row["bytes_simulated"], lambda size: f"{size / steps / 1e9:.3f}"),
        sequence_entry(row),
        Entry("; ".join(_notes(row)) or "–"),
    ]


def measured_words(row: Row) -> str:
    """The measured time in milliseconds, with its interval if it has one."""
    mean, low, high = (row[f"tpot_measured{end}_ns"] for end in ("", "_low", "_high"))
    return f"{mean / 1e6:,.2f}" + ("" if low is None else f" ({low / 1e6:,.2f}–{high / 1e6:,.2f})")


def _both(measured: int, simulated: int, words: Callable[[int], str]) -> Entry:
    if measured == simulated:
        return Entry(words(measured))
    return Entry(f"{words(measured)}, simulated {words(simulated)}", "bad")


def sequence_entry(row: Row) -> Entry:
    """Whether both worlds decided and executed the same, place by place."""
    if row["sequences_identical"] is None:
        return Entry("not compared")
    if row["sequences_identical"]:
        return Entry("identical", "good")
    return Entry(
        f"{row['decisions_different']:,} of {row['decisions_compared']:,} decisions and "
        f"{row['executed_differently']:,} of {row['executed']:,} executions differ",
        "poor" if row["timing_dependent"] else "bad",
    )


def _notes(row: Row) -> list[str]:
    notes = [] if row["lossless"] else ["lossy"]
    if row["timing_dependent"]:
        notes.append("decisions depend on the clock")
    if row["throttled"]:
        notes.append("throttled: " + ", ".join(map(throttle_words, row["throttle_reasons"])))
    return notes
