"""What a sweep hands out: groups of runs that share their decisions, and timelines to draw."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from moesim.result import Value
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.window import Window

Row = dict[str, Value]


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
    cost: ClassVar[int] = 3
    """As of a group of one run, without an interval."""


@dataclass(frozen=True)
class Drawn:
    """A timeline that is ready to be written."""

    name: str
    content: dict[str, Any]


Task = Group | Drawing


def split(groups: list[Group], workers: int) -> list[Group]:
    """The groups, longest first, cut where one would keep its worker busy long after the others have finished."""
    limit = max(8, sum(group.cost for group in groups) // (4 * workers))
    pieces = []
    for group in groups:
        count = min(len(group.runs), -(-group.cost // limit))
        each = -(-len(group.runs) // count)
        pieces += [Group(group.window, group.runs[at : at + each]) for at in range(0, len(group.runs), each)]
    return sorted(pieces, key=lambda group: -group.cost)


def kin(task: Task) -> object:
    """Tasks with equal kin share the offline optimum, which a worker keeps."""
    if isinstance(task, Drawing):
        return "drawing"
    return task.window.path, task.window.stop, task.window.capacity


def shares(tasks: list[Task], workers: int) -> list[int]:
    """Each task's worker, where each of them is given about the same work, and kin where it can be."""
    of = [0] * len(tasks)
    total, before = sum(task.cost for task in tasks), 0
    for place in sorted(range(len(tasks)), key=lambda place: str(kin(tasks[place]))):
        of[place] = before * workers // total
        before += tasks[place].cost
    return of


def alone(task: Task) -> list[Task]:
    """The same work in the smallest tasks that can be handed out."""
    return [task] if isinstance(task, Drawing) else [Group(task.window, [run]) for run in task.runs]


def work(task: Task) -> Iterator[Row | Drawn]:
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


class Lost:
    """What was lost because its worker died with it, each in words."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def rest(self, task: Task, answered: int, why: str) -> list[Task]:
        """Note the run that a worker died with, after `answered` answers of its task; what is left of the task."""
        if isinstance(task, Drawing):
            self.words.append(f"timeline {task.name} ({why})")
            return []
        run = task.runs[answered]
        self.words.append(f"grids.{run.grid}, policy {run.policy}, cache {run.cache_fraction:g} ({why})")
        left = task.runs[answered + 1 :]
        return [Group(task.window, left)] if left else []
