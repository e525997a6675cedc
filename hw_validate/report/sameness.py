"""What must be the same in both worlds: the order of policies, the decisions, and what lossless policies compute."""

from collections import Counter
from collections.abc import Sequence

from hw_validate.agreement import outputs, ranking
from hw_validate.comparison import Row
from hw_validate.report.accuracy import measured_words, sequence_entry
from hw_validate.report.section import Entry, Section, Table
from hw_validate.report.words import cell_words, model_words, setting_words
from moesim.report.words import percent, policy_words


def ranking_section(rows: Sequence[Row]) -> Section:
    """Whether the simulation orders policies as the machine does."""
    found = ranking(rows)
    sentences, tables = [], []
    if found.pairs:
        sentences.append(
            f"Of {found.pairs} pairs of policies, the measurement orders {found.ordered}; the intervals of the other "
            f"{found.overlapping} overlap."
        )
    if found.ordered:
        sentences.append(f"The simulation orders {found.alike} of the {found.ordered} as the machine does.")
    if found.different:
        columns = [
            "model", "cache", "setting", "faster as measured", "measured, ms", "simulated, ms", "slower as measured",
            "measured, ms", "simulated, ms",
        ]
        tables.append(Table.plain(columns, [_pair(faster, slower) for faster, slower in found.different]))
    return Section(
        "Whether policies come in the same order",
        "Within one model, cache size and setting, two policies whose measured 95 % intervals do not overlap must be "
        "in the same order in the simulation. Equal simulated times are no order.",
        sentences=sentences,
        tables=tables,
    )


def _pair(faster: Row, slower: Row) -> list[Entry]:
    return [
        Entry(model_words(faster["model"])),
        Entry(percent(faster["cache_fraction"])),
        Entry(setting_words(faster["phase"], faster["batch_tokens"])),
        *(
            entry
            for row in (faster, slower)
            for entry in (
                Entry(policy_words(row["policy"])),
                Entry(measured_words(row)),
                Entry(f"{row['tpot_simulated_ns'] / 1e6:,.2f}"),
            )
        ),
    ]


def decisions_section(rows: Sequence[Row]) -> Section:
    """Whether both worlds hit, missed, evicted, copied and executed the same; and whether the outputs are right."""
    compared = [row for row in rows if row["sequences_identical"] is not None]
    different = [row for row in compared if not row["sequences_identical"]]
    sentences, tables = [], []
    if compared:
        executed = sum(row["executed"] for row in compared)
        decisions = sum(row["decisions_compared"] for row in compared)
        sentences.append(
            f"Identical in both worlds: {len(compared) - len(different)} of {len(compared)} cells. "
            f"{decisions:,} decisions and {executed:,} executed experts were compared, place by place."
        )
    if different:
        tables.append(Table.plain(["cell", "difference", "policy"], [
            [Entry(cell_words(row)), sequence_entry(row), Entry(_clock(row))] for row in different
        ]))
    found = outputs(rows)
    if found.groups:
        sentences.append(
            f"Lossless policies must compute the same bits: {found.cells} cells in {found.groups} groups of one "
            f"model, trace and setting were compared, and {found.groups - len(found.different)} of the "
            f"{found.groups} groups agree."
        )
    else:
        sentences.append("Outputs: not measured for two lossless cells of one model and setting.")
    if found.different:
        tables.append(Table.plain(["model and setting", "cells with other outputs than most"], [
            [Entry(_group(group)), Entry("; ".join(_minority(group)), "bad")] for group in found.different
        ]))
    return Section(
        "Whether both worlds do the same",
        "Every slot on the GPU holds a tag of layer and expert in its bytes; the expert kernel reads the tag and logs "
        "it. The log, not the intention, is compared with the simulation. Decisions are hits, misses, victims and "
        "copies of every event, in order. Policies whose decisions depend on the clock may differ; that is counted.",
        sentences=sentences if compared or found.groups else [],
        tables=tables,
    )


def _clock(row: Row) -> str:
    return "decisions depend on the clock" if row["timing_dependent"] else "must be identical"


def _group(group: Sequence[Row]) -> str:
    return f"{model_words(group[0]['model'])}, {setting_words(group[0]['phase'], group[0]['batch_tokens'])}"


def _minority(group: Sequence[Row]) -> list[str]:
    """The cells that do not have the commonest output; of equally common ones the first counts."""
    ((common, _),) = Counter(row["output_sha256"] for row in group).most_common(1)
    return [
        f"{policy_words(row['policy'])} at {percent(row['cache_fraction'])}"
        for row in group if row["output_sha256"] != common
    ]
