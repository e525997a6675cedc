"""`moesim tournament`: every system on every trace, ranked."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "moesim tournament                                 # on the traces that ship; writes into runs/tournament",
    "moesim tournament --traces ../shared/traces       # also on recordings that others made",
    "moesim tournament mine.yaml --out runs/mine --workers 4",
    "Ctrl-C, then the same command again: continues and recomputes nothing.",
)


def tournament(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Systems, cards, cache sizes and traces (.yaml).")
    ] = Path("configs/tournament.yaml"),
    traces: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Recordings of others; configs/published-traces.yaml names the files."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = Path("runs/tournament"),
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes; by default one per CPU.")
    ] = None,
) -> None:
    """Rank every system on every trace: tables, a figure, results.parquet, and a sweep's folder for each trace."""
    from moesim.errors import ConfigError
    from moesim.progress import shown_progress
    from moesim.published.tournament import play
    from moesim.published.tournament_page import write
    from moesim.workers import usable_cpus

    if traces is not None and not traces.is_dir():
        raise ConfigError(f"--traces {traces}: no such folder")
    with shown_progress("runs") as progress:
        played = play(config, traces, out, workers or usable_cpus(), progress)
    for path in write(played, out):
        typer.echo(path)
    if played.absent:
        typer.echo(f"Not at hand (--traces FOLDER): {', '.join(played.absent)}")
