"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0


@contextmanager
def no_progress() -> Iterator[Callable[[int, int], None]]:
    """The same for who wants silence."""
    yield lambda done, total: None


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total). Everything goes to standard error."""
    if not sys.stderr.isatty():
        last = float("-inf")

        def line(done: int, total: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
