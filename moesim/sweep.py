"""A grid of runs: in parallel, resumable, and the same bytes whatever the number of workers.

Runs that share trace, policy and slots share their decisions; such a group goes to one worker, which decides once
and times often. Every row is kept as soon as it is there (`sweep_folder`), and the table is made of the kept rows in
the order of the configuration.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import moesim
from moesim.config import Excerpt, Sweep, cache_fraction
from moesim.errors import ConfigError, InputError
from moesim.policies.registry import ROLES, rules
from moesim.quality.stored import beside
from moesim.result import Value
from moesim.run import RunConfig, prepare, run_hash, simulate
from moesim.sweep_folder import SweepFolder, claimed
from moesim.window import Window, load_trace
from moesim.workers import answers
from moesim.yaml_file import line_of

Row = dict[str, Value]
Progress = Callable[[int, int], None]
"""Told how many runs are finished, of how many."""


@dataclass(frozen=True)
class Group:
    """Runs that share their decisions."""

    window: Window
    runs: list[RunConfig]

    @property
    def cost(self) -> int:
        """About how long it takes: deciding counts like two clocks, and an interval has three clocks."""
        return 2 + sum(3 if run.interval else 1 for run in self.runs)


@dataclass(frozen=True)
class Drawing:
    """A timeline to draw, by name."""

    name: str
    run: RunConfig
    layers: tuple[int, int]


@dataclass(frozen=True)
class Drawn:
    """A timeline that is ready to be written."""

    name: str
    content: dict[str, Any]


def run_sweep(sweep: Sweep, out: Path, workers: int, progress: Progress) -> list[Row]:
    """Run what is not finished yet and write results.parquet. Returns the rows in the order of the configuration.

    Interrupted, it writes the rows that there are, and the next call continues.

    Raises:
        InputError: the configuration cannot be run, the folder belongs to another sweep or is in use, or a file
            cannot be written. What was finished stays.
    """
    windows = checked(sweep)
    drawings = [_drawing(excerpt, sweep, number) for number, excerpt in enumerate(sweep.timelines)]
    with claimed(out, sweep.config.name, code_hash()) as folder:
        if not folder.described:
            folder.write_description(description(sweep))
        hashes = [run_hash(run) for run in sweep.runs]
        rows = folder.finished()
        rows = {name: rows[name] for name in hashes if name in rows}
        groups: dict[Window, list[RunConfig]] = {}
        for run, name, window in zip(sweep.runs, hashes, windows, strict=True):
            if name not in rows:
                groups.setdefault(window, []).append(run)
        tasks: list[Group | Drawing] = [
            *split([Group(window, runs) for window, runs in groups.items()], workers),
            *(drawing for drawing in drawings if not folder.has_timeline(drawing.name)),
        ]
        progress(len(rows), len(hashes))
        try:
            with closing(answers(tasks, work, workers, kin)) as found:
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
        ordered = [rows[name] for name in hashes]
        folder.drop_other_timelines({drawing.name for drawing in drawings})
        _write(sweep, folder, ordered)
    return ordered


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


def split(groups: list[Group], workers: int) -> list[Group]:
    """The groups, longest first, cut where one would keep its worker busy long after the others have finished."""
    limit = max(8, sum(group.cost for group in groups) // (4 * workers))
    pieces = []
    for group in groups:
        count = min(len(group.runs), -(-group.cost // limit))
        each = -(-len(group.runs) // count)
        pieces += [Group(group.window, group.runs[at : at + each]) for at in range(0, len(group.runs), each)]
    return sorted(pieces, key=lambda group: -group.cost)


def kin(task: Group | Drawing) -> object:
    """Tasks with equal kin share the offline optimum, which a worker keeps."""
    if isinstance(task, Drawing):
        return "drawing"
    return task.window.path, task.window.stop, task.window.capacity


def work(task: Group | Drawing) -> Iterator[Row | Drawn]:
    """A worker's task."""
    if isinstance(task, Drawing):
        yield draw(task)
        return
    for run in task.runs:
        yield simulate(run).row()


def draw(drawing: Drawing) -> Drawn:
    """Some layers of the last token of a run, with instants counted from where they begin."""
    result = simulate(drawing.run, timeline=True)
    assert result.timeline is not None, "it was asked for"
    start, stop, slices = result.timeline.excerpt(*result.last_token_ns, *drawing.layers)
    return Drawn(drawing.name, {
        "name": drawing.run.policy,
        "policy": drawing.run.policy,
        "cache_fraction": result.values["cache_fraction"],
        "context_tokens": result.values["context_tokens"],
        "layers": list(drawing.layers),
        "start_ns": start,
        "end_ns": stop,
        "slices": [asdict(each) for each in slices],
    })


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
        "quality": _quality(sweep),
    }


def _quality(sweep: Sweep) -> dict[str, Any]:
    """By trace, what lossy execution was measured to cost its model, where a file beside the trace says so."""
    found = {}
    for path in dict.fromkeys(run.trace for run in sweep.runs):
        told = load_trace(path).metadata
        quality = beside(path, told.name, told.provenance)
        if quality is not None:
            found[told.name] = quality.model_dump(mode="json")
    return found


def _write(sweep: Sweep, folder: SweepFolder, rows: list[Row]) -> None:
    folder.write_results(rows)
    folder.write_description(description(sweep))


@cache
def code_hash() -> str:
    """The hash of the code that makes rows, other packages' rules included: rows of changed code are made again."""
    package = Path(moesim.__file__).parent
    files = {str(file.relative_to(package)): file for file in package.rglob("*.py")}
    for role in ROLES:
        for rule in rules(role).values():
            file = getattr(sys.modules[rule.__module__], "__file__", None)
            if file is not None and package not in Path(file).parents:
                files[rule.__module__] = Path(file)
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
