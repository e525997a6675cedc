"""A grid of runs: in parallel, resumable, and the same bytes whatever the number of workers.

    OUT/sweep.json         what the sweep is
    OUT/finished/HASH.json one file per finished run, written whole or not at all: what a resumed sweep need not redo
    OUT/timelines/*.json   a few layers of one token, for the report
    OUT/results.parquet    one row per run, in the order of the configuration

Runs that share trace, policy and slots go to one worker, which decides once and times often. Workers are spawned, not
forked: a fork of a process that holds threads and mapped files is not safe.
"""

import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.atomic_write import atomic_write
from moesim.config import SweepConfig, TimelineWish
from moesim.errors import ConfigError, InputError
from moesim.result import SCHEMA, Value
from moesim.run import RunConfig, prepare, run_hash, simulate
from moesim.window import Window

Progress = Callable[[int, int], None]
"""Told how many runs are finished, of how many."""
RESULTS, SWEEP, FINISHED, TIMELINES = "results.parquet", "sweep.json", "finished", "timelines"


class SweepError(InputError):
    """A sweep cannot write its output, or lost a worker."""


def run_sweep(config_path: Path, out: Path, workers: int, progress: Progress) -> list[dict[str, Value]]:
    """Run what is not finished yet and write results.parquet. Returns the rows in the order of the configuration.

    Raises:
        InputError: the configuration cannot be run, the folder belongs to another sweep or is in use, or a file
            cannot be written. What was finished stays.
    """
    sweep = SweepConfig.load(config_path)
    runs = sweep.runs(config_path)
    groups: dict[Window, list[RunConfig]] = {}
    for run in runs:  # everything is checked before anything is written or run
        groups.setdefault(prepare(run).window, []).append(run)
    wishes = [(wish, sweep.timeline_run(wish, config_path)) for wish in sweep.timelines]
    for _, run in wishes:
        prepare(run)
    with claimed(out, sweep.name):
        describe(sweep, runs, out)
        hashes = [run_hash(run) for run in runs]
        known = {name: row for name in dict.fromkeys(hashes) if (row := finished_row(out, name)) is not None}
        progress(len(known), len(set(hashes)))
        todo = [
            [run for run in group if run_hash(run) not in known]
            for group in groups.values()
            if any(run_hash(run) not in known for run in group)
        ]
        drawings = [(wish, run) for wish, run in wishes if not timeline_path(out, wish).exists()]
        for rows in computed(todo, drawings, out, workers):
            known |= {str(row["run_hash"]): row for row in rows}
            progress(len(known), len(set(hashes)))
        rows = [known[name] for name in hashes]
        write_results(rows, out / RESULTS)
    return rows


def computed(
    groups: list[list[RunConfig]], drawings: list[tuple[TimelineWish, RunConfig]], out: Path, workers: int
) -> Iterator[list[dict[str, Value]]]:
    """The rows of every group as it is finished, on `workers` processes; on none for one worker or one task."""
    tasks: list[tuple[Callable[..., list[dict[str, Value]]], tuple[Any, ...]]] = [
        *((run_group, (group, out)) for group in sorted(groups, key=len, reverse=True)),
        *((draw, (wish, run, out)) for wish, run in drawings),
    ]
    if workers == 1 or len(tasks) < 2:
        for function, arguments in tasks:
            yield function(*arguments)
        return
    pool = ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn"), initializer=leave_interrupts_alone)
    try:
        futures: list[Future[list[dict[str, Value]]]] = [pool.submit(function, *args) for function, args in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise SweepError(f"{out}: a worker died; what is finished is kept, run the same command again") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in (getattr(pool, "_processes", None) or {}).values():
            process.terminate()  # after Ctrl-C nobody waits for runs that will be redone anyway


def leave_interrupts_alone() -> None:
    """Ctrl-C reaches every process of the terminal; only the parent answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_group(group: list[RunConfig], out: Path) -> list[dict[str, Value]]:
    """Run a group in this process and keep each row as soon as it is there."""
    rows = []
    for run in group:
        row = simulate(run).row()
        keep(row, out)
        rows.append(row)
    return rows


def draw(wish: TimelineWish, run: RunConfig, out: Path) -> list[dict[str, Value]]:
    """Store some layers of one token as a timeline of the report."""
    result = simulate(run, timeline=True)
    assert result.timeline is not None, "it was asked for"
    start, stop, slices = result.timeline.excerpt(*result.last_token_ns, *wish.layers)
    content = {
        "name": result.values["policy"],
        "policy": result.values["policy"],
        "cache_fraction": result.values["cache_fraction"],
        "context_tokens": result.values["context_tokens"],
        "layers": list(wish.layers),
        "start_ns": start,
        "end_ns": stop,
        "slices": [asdict(each) for each in slices],
    }
    with atomic_write(timeline_path(out, wish), SweepError) as file:
        file.write(json.dumps(content, indent=1).encode())
    return []


def timeline_path(out: Path, wish: TimelineWish) -> Path:
    """The file of a timeline: named by a readable part and a hash of the wish."""
    name = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in wish.policy)
    digest = hashlib.sha256(wish.model_dump_json().encode()).hexdigest()[:8]
    return out / TIMELINES / f"{name}-{digest}.json"


def keep(row: dict[str, Value], out: Path) -> None:
    """Store a finished row, whole or not at all, with a checksum."""
    text = json.dumps(row, sort_keys=True)
    content = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "row": row}
    with atomic_write(out / FINISHED / f"{row['run_hash']}.json", SweepError) as file:
        file.write(json.dumps(content, sort_keys=True).encode())


def finished_row(out: Path, name: str) -> dict[str, Value] | None:
    """The row of a finished run; None if there is none, or if its file is torn."""
    try:
        content = json.loads((out / FINISHED / f"{name}.json").read_bytes())
        row: dict[str, Value] = content["row"]
        whole = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest() == content["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return row if whole and row.get("run_hash") == name else None


def write_results(rows: list[dict[str, Value]], path: Path) -> None:
    """Write the table, whole or not at all. Equal rows give equal bytes."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with atomic_write(path, SweepError) as file:
        pq.write_table(table, file, compression="zstd")


def describe(sweep: SweepConfig, runs: list[RunConfig], out: Path) -> None:
    """Write sweep.json: what the report needs to know beside the rows."""
    content = {
        "name": sweep.name,
        "title": sweep.title or sweep.name,
        "grids": sweep.grids,
        "warmup_tokens": sweep.warmup_tokens,
        "measured_tokens": sweep.measured_tokens,
        "published": [fact.model_dump() for fact in sweep.published],
        "runs": len(runs),
    }
    with atomic_write(out / SWEEP, SweepError) as file:
        file.write(json.dumps(content, indent=1).encode())


@contextmanager
def claimed(out: Path, name: str) -> Iterator[None]:
    """The output folder, for this sweep alone; the claim ends with the process, however it ends.

    Raises:
        SweepError: it cannot be written.
        ConfigError: it holds something else, or another process is sweeping into it.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; the output of a sweep is a folder")
    described = out / SWEEP
    if described.exists():
        try:
            other = json.loads(described.read_bytes())["name"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{described}: not a sweep's description; choose another --out") from None
        if other != name:
            raise ConfigError(f"{out}: holds the sweep {other!r}, not {name!r}; choose another folder with --out")
    elif out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir()):
        raise ConfigError(f"{out}: is not empty and holds no sweep; choose another folder with --out")
    try:
        for folder in (out / FINISHED, out / TIMELINES):
            folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SweepError(f"{out}: cannot be written: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{out}: another process is sweeping into this folder") from None
        yield
    finally:
        os.close(lock)
