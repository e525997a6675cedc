"""How close the engine runs to the machine's limits, and how far a plain engine stays behind."""

from hw_validate.measurement import Limit, Limits
from hw_validate.report.section import Entry, Section, Table
from hw_validate.report.words import model_words, spaced
from moesim.report.words import gigabytes_per_s, milliseconds, policy_words


def limits_section(limits: Limits | None) -> Section:
    """Measured against bound, with the ratio that was asked for."""
    title = "How close to the machine's limit"
    caption = (
        "A simulator is checked against an engine that is worth simulating: rates should reach at least, times take "
        "at most the stated share of what the machine can do at best."
    )
    if limits is None or not limits.limits:
        return Section(title, caption)
    columns = ["what", "measured", "bound", "ratio", "target", "result"]
    return Section(title, caption, tables=[Table.plain(columns, [_limit(each) for each in limits.limits])])


def met(limit: Limit) -> bool:
    """Rates must reach their target, times must not exceed it."""
    return limit.ratio >= limit.target if limit.unit == "bytes/s" else limit.ratio <= limit.target


def _limit(limit: Limit) -> list[Entry]:
    value = gigabytes_per_s if limit.unit == "bytes/s" else _time
    asked = "at least" if limit.unit == "bytes/s" else "at most"
    return [
        Entry(limit.what or spaced(limit.name)),
        Entry(value(limit.measured)),
        Entry(value(limit.bound)),
        Entry(f"{limit.ratio:.3f}"),
        Entry(f"{asked} {limit.target:g}"),
        Entry("met", "good") if met(limit) else Entry("not met", "bad"),
    ]


def _time(ns: float) -> str:
    return milliseconds(ns) if ns >= 1e6 else f"{ns / 1e3:,.1f} µs"


def baseline_section(limits: Limits | None) -> Section:
    """The plain engine beside this one."""
    both = [] if limits is None else [policy for policy in limits.baselines if policy in limits.engine]
    rows = []
    for policy in both:
        assert limits is not None
        plain, ours = limits.baselines[policy], limits.engine[policy]
        rows.append([
            Entry(policy_words(policy)),
            Entry(milliseconds(plain)),
            Entry(milliseconds(ours)),
            Entry(f"{plain / ours:.2f} times as fast"),
        ])
    model = f" {model_words(limits.baseline_model)}." if limits is not None and limits.baseline_model else ""
    columns = ["policy", "plain engine", "this engine", "this engine is"]
    return Section(
        "Beside an engine as users write it",
        "The plain engine: three copies per expert, eager kernels, ids read back synchronously; same machine, same "
        f"run, time per output token.{model}",
        tables=[Table.plain(columns, rows)] if rows else [],
    )
