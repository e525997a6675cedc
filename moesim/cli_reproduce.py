"""`moesim reproduce`: what papers report, held against runs of our own."""

import json
from pathlib import Path
from typing import Annotated

import typer

PAGE = Path("docs/published.md")
EXAMPLES = (
    "moesim reproduce                                  # all systems; writes docs/published.md",
    "moesim reproduce specmd",
    "moesim reproduce --traces ../shared/traces        # also on recordings that others made",
    "moesim reproduce --json | jq '.[].claims[] | select(.verdict == \"contradict\") | .id'",
)


def reproduce(
    system: Annotated[
        str | None, typer.Argument(help="One system (a file of configs/published); by default all.", show_default=False)
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Recordings of others; configs/published-traces.yaml names the files."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=f"Where the page goes; by default {PAGE} when all are run."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes; by default one per CPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Run what published claims compare: agree, contradict, or what a test would need."""
    from moesim.atomic_write import atomic_write
    from moesim.errors import ConfigError
    from moesim.progress import shown_progress
    from moesim.published.page import as_data, page
    from moesim.published.reproduce import load_asked
    from moesim.published.reproduce import reproduce as run_claims
    from moesim.published.words import print_reproduced
    from moesim.workers import usable_cpus

    if traces is not None and not traces.is_dir():
        raise ConfigError(f"--traces {traces}: no such folder")
    where = out if out is not None or system is not None else PAGE
    if where is not None and not where.parent.is_dir():
        raise ConfigError(f"{where}: no folder {where.parent}: say where the page goes with --out")
    asked = load_asked(system)
    with shown_progress("runs") as progress:
        results = run_claims(asked, traces, workers or usable_cpus(), progress)
    if where is not None:
        with atomic_write(where) as file:
            file.write(page(results, asked.sources).encode())
    if as_json:
        typer.echo(json.dumps(as_data(results), indent=2, ensure_ascii=False))
    else:
        print_reproduced(results, where)
