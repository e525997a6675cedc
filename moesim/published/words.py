"""Verdicts on a terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from moesim.published.page import VERDICTS, counts, number
from moesim.published.reproduce import Reproduced
from moesim.summary import console

_COLOURS = {"agree": "green", "contradict": "red", "cannot be tested": "dim"}


def print_reproduced(results: Sequence[Reproduced], written: Path | None) -> None:
    """Every claim in two lines: its verdict, and ours by trace or what is missing."""
    out = console()
    for each in results:
        out.print(f"[bold]{escape(each.name)}[/bold]: {escape(each.system.title)} ({escape(each.system.source)})")
        for tested in each.tested:
            claim, colour = tested.claim, _COLOURS[tested.verdict]
            out.print(f"  [{colour}]{tested.verdict}[/{colour}]  {claim.id}: {escape(claim.says)}")
            for outcome in tested.outcomes:
                ours = outcome.reason if outcome.value is None else f"ours {number(claim, outcome.value)}"
                note = f" on {outcome.trace}" if outcome.trace else ""
                out.print(f"      {escape(ours)}{escape(note)}")
    found = counts(results)
    out.print(", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS))
    if written is not None:
        out.print(str(written))
