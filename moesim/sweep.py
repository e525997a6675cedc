"""A grid of runs: in parallel, resumable, and the same bytes whatever the number of workers.

Runs that share trace, policy and slots share their decisions; such a group goes to one worker, which decides once
and times often. Every row is kept as soon as it is there (`sweep_folder`), and the table is made of the kept rows in
the order of the configuration.
"""

import hashlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesim
from moesim.code_hash import code_hash
from moesim.config import Excerpt, Sweep, cache_fraction
from moesim.errors import ConfigError, InputError
from moesim.prepare import prepare
from moesim.quality.stored import beside, recorded_from, stand_in
from moesim.run_config import RunConfig, run_hash
from moesim.sweep_folder import SweepFolder, claimed
from moesim.sweep_tasks import Drawing, Drawn, Group, Lost, Row, Task, kin, split, work
from moesim.window import Window, load_trace
from moesim.workers import answers
from moesim.yaml_file import line_of

if TYPE_CHECKING:
    from moesim.cluster import Cluster

Progress = Callable[[int, int], None]
"""Told how many runs are finished, of how many."""


class LostRunsError(InputError):
    """Some runs were not made: each time, the process that made them died."""


def run_sweep(sweep: Sweep, out: Path, workers: int, progress: Progress, cluster: str | None = None) -> list[Row]:
    """Run what is not finished yet and write results.parquet. Returns the rows in the order of the configuration.

    With `cluster`, the address of a Dask scheduler, its workers do what `workers` processes here would.
    Interrupted, it writes the rows that there are, and the next call continues.

    Raises:
        LostRunsError: workers died with some runs; all others are made and written.
        InputError: the configuration cannot be run, the folder belongs to another sweep or is in use, a file cannot
            be written, or the cluster cannot be used. What was finished stays.
    """
    windows = checked(sweep)
    drawings = [_drawing(excerpt, sweep, number) for number, excerpt in enumerate(sweep.timelines)]
    with ExitStack() as held:
        team = held.enter_context(_connected(cluster)) if cluster is not None else None
        folder = held.enter_context(claimed(out, sweep.config.name, code_hash()))
        if not folder.described:
            folder.write_description(description(sweep))
        hashes = [run_hash(run) for run in sweep.runs]
        rows = folder.finished()
        rows = {name: rows[name] for name in hashes if name in rows}
        groups: dict[Window, list[RunConfig]] = {}
        for run, name, window in zip(sweep.runs, hashes, windows, strict=True):
            if name not in rows:
                groups.setdefault(window, []).append(run)
        tasks: list[Task] = [
            *split([Group(window, runs) for window, runs in groups.items()], team.workers if team else workers),
            *(drawing for drawing in drawings if not folder.has_timeline(drawing.name)),
        ]
        progress(len(rows), len(hashes))
        lost = Lost()
        try:
            with closing(_answers(tasks, workers, team, lost)) as found:
                for answer in found:
                    if isinstance(answer, Drawn):
                        folder.write_timeline(answer.name, answer.content)
                        continue
                    folder.keep(answer)
                    rows[str(answer["run_hash"])] = answer
                    progress(len(rows), len(hashes))
        except KeyboardInterrupt:
            rows = folder.finished()  # the last may have been kept just before
            _write(sweep, folder, [rows[name] for name in hashes if name in rows])
            raise
        ordered = [rows[name] for name in hashes if name in rows]
        folder.drop_other_timelines({drawing.name for drawing in drawings})
        _write(sweep, folder, ordered)
    if lost.words:
        raise LostRunsError(
            f"{out}: {len(lost.words)} of {len(hashes)} runs not made, since workers died with them; the same command "
            f"tries again, perhaps with fewer workers where memory was short: {'; '.join(lost.words)}"
        )
    return ordered


def _connected(address: str) -> "AbstractContextManager[Cluster]":
    from moesim.cluster import connected  # Dask is an extra, and costs a second to import

    return connected(address)


def _answers(
    tasks: list[Task], workers: int, team: "Cluster | None", lost: Lost
) -> Generator[Row | Drawn, None, None]:
    if team is None:
        return answers(tasks, work, workers, kin, lost.rest)
    return team.answers(tasks, lost)


def checked(sweep: Sweep) -> list[Window]:
    """What each run decides on. Raises ConfigError at the first run whose inputs do not fit together."""
    windows = []
    for run in sweep.runs:
        try:
            windows.append(prepare(run).window)
        except InputError as error:
            where = f"{sweep.path}{line_of(sweep.path, 'grids', run.grid)}"
            raise ConfigError(f"{where}: grids.{run.grid}, policy {run.policy}: {error}") from None
    return windows


def _drawing(excerpt: Excerpt, sweep: Sweep, number: int) -> Drawing:
    where = f"{sweep.path}{line_of(sweep.path, 'timelines', number)}: timelines.{number}"
    try:
        layers = prepare(excerpt.run).trace.layers
    except InputError as error:
        raise ConfigError(f"{where}: {error}") from None
    first, last = excerpt.layers or (layers // 2, min(layers // 2 + 2, layers - 1))
    if last >= layers:
        raise ConfigError(f"{where}.layers = [{first}, {last}]: the trace has layers 0 to {layers - 1}")
    readable = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in excerpt.run.policy)
    exact = hashlib.sha256(f"{run_hash(excerpt.run)} {first} {last} {code_hash()}".encode()).hexdigest()
    return Drawing(f"{number}-{readable}-{exact[:8]}", excerpt.run, (first, last))


def description(sweep: Sweep) -> dict[str, Any]:
    """What the report needs to know beside the rows."""
    config = sweep.config
    runs = sweep.runs
    return {
        "name": config.name,
        "title": config.title or config.name,
        "moesim_version": moesim.__version__,
        "grids": config.grids,
        "warmup_tokens": runs[0].warmup_tokens,
        "measured_tokens": runs[0].measured_tokens,
        "published": [
            {**fact.model_dump(exclude={"cache"}), "cache_fraction": cache_fraction(fact.cache)}
            for fact in config.published
        ],
        "runs": len(runs),
        **_quality(sweep),
    }


def _quality(sweep: Sweep) -> dict[str, Any]:
    """By trace, what lossy execution was measured to cost its model, and whose model was another one."""
    measured: dict[str, Any] = {}
    others: list[str] = []
    given = {name: sweep.path.parent / path for name, path in sweep.config.quality.items()}
    for path in dict.fromkeys(run.trace for run in sweep.runs):
        told = load_trace(path).metadata
        file = given.pop(told.name, None)
        quality = beside(path, told.name, told.provenance) if file is None else stand_in(file, told)
        if quality is None:
            continue
        measured[told.name] = quality.model_dump(mode="json")
        if file is not None and not recorded_from(quality.weights_sha256, told.provenance):
            others.append(told.name)
    if given:
        name = next(iter(given))
        where = f"{sweep.path}{line_of(sweep.path, 'quality', name)}"
        raise ConfigError(f"{where}: quality.{name}: no run of this sweep replays a trace of that name")
    return {"quality": measured, "quality_of_another_model": others}


def _write(sweep: Sweep, folder: SweepFolder, rows: list[Row]) -> None:
    folder.write_results(rows)
    folder.write_description(description(sweep))
