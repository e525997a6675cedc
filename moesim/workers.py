"""Work on several processes: each takes a task when it has finished one, and answers go to the parent as they come.

The parent alone writes files, so nothing is left half-done by a worker, however either of them ends: a worker whose
parent has gone finds its pipe closed and ends too. Workers are spawned, not forked: a copy of a process that holds
threads and mapped files is not safe, and each starts with the memory of a fresh interpreter.
"""

import os
import signal
import traceback
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from moesim.errors import InputError

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class LostWorkerError(InputError):
    """A worker process ended without an answer: most likely the system took it for its memory."""


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def answers(
    tasks: Sequence[Task],
    work: Callable[[Task], Iterable[Answer]],
    workers: int,
    kin: Callable[[Task], Hashable],
) -> Generator[Answer, None, None]:
    """Whatever `work` yields for every task, in the order in which it is ready.

    Tasks are handed out in the order given, except that a worker prefers kin of what it has done (it may have kept
    something that helps). With one worker, or one task, all is done in this process. Close the iterator to stop.

    Raises:
        InputError: as `work` raised it.
        LostWorkerError: a worker died.
    """
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield from work(task)
        return
    context = get_context("spawn")
    waiting = list(tasks)
    team: dict[Connection, BaseProcess] = {}
    done: dict[Connection, set[Hashable]] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            team[ours], done[ours] = process, set()
        while team:
            for connection in wait(list(team)):
                assert isinstance(connection, Connection)
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    process = team[connection]
                    process.join()
                    raise LostWorkerError(
                        f"a worker process died (exit code {process.exitcode}); what is finished is kept: "
                        "run the same command again, with fewer --workers if memory was short"
                    ) from None
                if kind == "answer":
                    yield content
                elif kind == "failed":
                    raise content
                elif waiting:
                    task = waiting.pop(_choose([kin(each) for each in waiting], done, connection))
                    done[connection].add(kin(task))
                    connection.send(task)
                else:
                    connection.close()
                    team.pop(connection).join()
    finally:
        for process in team.values():
            process.terminate()
        for connection, process in team.items():
            process.join()
            connection.close()


def _choose(kinds: list[Hashable], done: dict[Connection, set[Hashable]], connection: Connection) -> int:
    """Which waiting task a worker takes: kin of its own, or else what nobody has begun, or else the first."""
    others = set().union(*done.values())
    own = (place for place, kind in enumerate(kinds) if kind in done[connection])
    new = (place for place, kind in enumerate(kinds) if kind not in others)
    return next(own, next(new, 0))


def _serve(connection: Connection, work: Callable[[Any], Iterable[Any]]) -> None:
    """A worker's life: ask, work, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent answers it
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended, or has no more work
        while True:
            connection.send(("ready", None))
            task = connection.recv()
            try:
                for answer in work(task):
                    connection.send(("answer", answer))
            except InputError as error:
                connection.send(("failed", error))
            except BrokenPipeError:
                raise
            except Exception:  # a bug: its traceback is worth more than its type
                connection.send(("failed", RuntimeError(f"in a worker process:\n{traceback.format_exc()}")))
