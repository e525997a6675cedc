"""What the GPU drew and how fast its clocks ran while it was measured."""

from collections.abc import Sequence

from hw_validate.agreement import grouped
from hw_validate.comparison import Row
from hw_validate.report.accuracy import GROUP, group_words
from hw_validate.report.section import Entry, Picture, Section, Table
from hw_validate.report.words import setting_words, throttle_words
from moesim.report.words import percent, policy_words

TOLD = ("power_mean_w", "energy_per_token_j", "sm_clock_mean_mhz", "sm_clock_min_mhz")


def power_section(rows: Sequence[Row], pictures: list[Picture]) -> Section:
    """Power, energy per token and clocks of every cell that NVML told of."""
    told = [row for row in rows if any(row[name] is not None for name in TOLD) or row["throttled"]]
    groups = [(group_words(group[0]), [_row(row) for row in group]) for group in grouped(told, GROUP).values()]
    columns = ["policy", "cache", "setting", "mean power", "energy per token", "SM clock, mean", "lowest", "throttled"]
    throttled = [row for row in told if row["throttled"]]
    sentences = []
    if told:
        reasons = sorted({throttle_words(reason) for row in throttled for reason in row["throttle_reasons"]})
        watched = f"{len(told)} runs that the driver watched"
        sentences.append(
            f"{len(throttled)} of the {watched} were throttled ({', '.join(reasons)}); they are marked, and counted "
            "like the others."
            if throttled else f"None of the {watched} was throttled."
        )
    return Section(
        "Power and energy",
        "Of the GPU alone, as the driver samples it beside the measured steps; the host's memory and processor, which "
        "offloading keeps busy, come on top.",
        sentences=sentences,
        pictures=pictures,
        tables=[Table(columns, groups)] if told else [],
    )


def _row(row: Row) -> list[Entry]:
    reasons = ", ".join(map(throttle_words, row["throttle_reasons"]))
    return [
        Entry(policy_words(row["policy"])),
        Entry(percent(row["cache_fraction"])),
        Entry(setting_words(row["phase"], row["batch_tokens"])),
        _value(row["power_mean_w"], "{:.0f} W"),
        Entry("–") if row["phase"] == "prefill" else _value(row["energy_per_token_j"], "{:.3g} J"),
        _value(row["sm_clock_mean_mhz"], "{:,.0f} MHz"),
        _value(row["sm_clock_min_mhz"], "{:,.0f} MHz"),
        Entry(reasons, "bad") if row["throttled"] else Entry("no"),
    ]


def _value(value: float | None, form: str) -> Entry:
    return Entry("not measured" if value is None else form.format(value))
