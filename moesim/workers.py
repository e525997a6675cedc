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
from dataclasses import dataclass, field
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


@dataclass
class _Member:
    """A worker process, what it has begun, and how far it is."""

    process: BaseProcess
    done: set[Hashable] = field(default_factory=set)
    tasks: list[Any] = field(default_factory=list)
    """The task at hand, or nothing."""
    answered: int = 0

    def death(self) -> str:
        """What the system says of its end, once its pipe is closed."""
        self.process.join()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        return f"signal {-code}" + (", most likely for its memory" if code == -signal.SIGKILL else "")


def answers(
    tasks: Sequence[Task],
    work: Callable[[Task], Iterable[Answer]],
    workers: int,
    kin: Callable[[Task], Hashable],
    rest: Callable[[Task, int, str], Sequence[Task]] | None = None,
) -> Generator[Answer, None, None]:
    """Whatever `work` yields for every task, in the order in which it is ready.

    Tasks are handed out in the order given, except that a worker prefers kin of what it has done (it may have kept
    something that helps). With one worker, or one task, all is done in this process. Close the iterator to stop.

    When a worker dies, `rest` is told its task, how many answers of it had arrived, and why; another worker does what
    it returns, and all goes on.

    Raises:
        InputError: as `work` raised it.
        LostWorkerError: a worker died and there is no `rest`, or it died before it had a task.
    """
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield from work(task)
        return
    waiting = list(tasks)
    team = dict(_started(work) for _ in range(min(workers, len(tasks))))
    try:
        while team:
            for connection in wait(list(team)):
                assert isinstance(connection, Connection)
                member = team[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    why = member.death()
                    if rest is None or not member.tasks:
                        raise LostWorkerError(
                            f"a worker process died ({why}); what is finished is kept: "
                            "run the same command again, with fewer --workers if memory was short"
                        ) from None
                    del team[connection]
                    connection.close()
                    waiting += rest(member.tasks[0], member.answered, why)
                    if waiting:
                        team.update([_started(work)])
                    continue
                if kind == "answer":
                    member.answered += 1
                    yield content
                elif kind == "failed":
                    raise content
                elif waiting:
                    task = waiting.pop(_choose([kin(each) for each in waiting], member, team.values()))
                    member.done.add(kin(task))
                    member.tasks, member.answered = [task], 0
                    with suppress(BrokenPipeError, ConnectionResetError):  # it has died; the next reading says so
                        connection.send(task)
                else:
                    process = team.pop(connection).process
                    process.terminate()  # to take apart what it has kept would take seconds, and serve nobody
                    process.join()
                    connection.close()
    finally:
        for member in team.values():
            member.process.terminate()
        for connection, member in team.items():
            member.process.join()
            connection.close()


def _started(work: Callable[[Any], Iterable[Any]]) -> tuple[Connection, _Member]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    return ours, _Member(process)


def _choose(kinds: list[Hashable], member: _Member, team: Iterable[_Member]) -> int:
    """Which waiting task a worker takes: kin of its own, or else what nobody has begun, or else the first."""
    others = set().union(*(each.done for each in team))
    own = (place for place, kind in enumerate(kinds) if kind in member.done)
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
