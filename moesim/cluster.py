"""A sweep's tasks on the workers of an existing Dask cluster; Slurm, Kubernetes and clouds come with it.

Dask hands tasks out, and hands out again what a lost worker had. It pickles what it carries, between processes that
trust one another; what we give it is the name of one function, and text. Files are written here alone.
"""

import json
import logging
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moesim.cluster_task import answer, answers_in, as_text
from moesim.errors import InputError
from moesim.sweep_tasks import Drawn, Lost, Row, Task, alone, shares

try:
    from distributed import Client, Future, KilledWorker, as_completed
    from distributed.comm.addressing import parse_address, parse_host_port
    from distributed.comm.registry import get_backend
except ModuleNotFoundError as error:
    raise InputError(f"--cluster needs {error.name}: pip install 'moesim[cluster]'") from None

REACH_WITHIN_S = 10
CLOSE_WITHIN_S = 10


class ClusterError(InputError):
    """The cluster cannot be used."""


class Cluster:
    """A connection to a scheduler."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address

    @property
    def workers(self) -> int:
        """How many tasks run at a time, by the workers of now; more may join at any time."""
        return max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def answers(self, tasks: list[Task], lost: Lost) -> Generator[Row | Drawn, None, None]:
        """What the tasks answer, in the order in which it is ready. Close the iterator to stop.

        Dask gives a task up when workers died while they had it (its `allowed-failures`), though another task may have
        killed them. So these are tried again run by run, one at a time; a run that dies alone is noted as lost.

        Raises:
            ClusterError: the scheduler has gone, or a worker cannot do such work.
            InputError: as a run raised it.
        """
        sweep = uuid.uuid4().hex
        suspects: list[Task] = []
        yield from self._answers(tasks, sweep, suspects)
        for suspect in [piece for task in suspects for piece in alone(task)]:
            guilty: list[Task] = []
            yield from self._answers([suspect], sweep, guilty)
            for task in guilty:
                lost.rest(task, 0, "its workers died")

    def _answers(self, tasks: list[Task], sweep: str, given_up: list[Task]) -> Generator[Row | Drawn, None, None]:
        workers = list(self._client.scheduler_info(n_workers=-1)["workers"])
        of: dict[Future[str], Task] = {}
        for task, share in zip(tasks, shares(tasks, len(workers) or 1), strict=True):
            # Kin are meant for one worker, which keeps what they share; whoever is idle takes them from there.
            meant = {"workers": workers[share], "allow_other_workers": True} if workers else {}
            of[self._client.submit(answer, as_text(task, sweep), key=f"moesim-run-{uuid.uuid4()}", **meant)] = task
        for future in as_completed(list(of), loop=self._client.loop):
            task = of.pop(future)
            problem = future.exception() if future.status == "error" else None
            if isinstance(problem, KilledWorker):
                given_up.append(task)
            elif problem is not None:
                raise _said(self._address, problem)
            elif future.status != "finished":
                raise ClusterError(f"--cluster {self._address}: the scheduler has gone; what is finished is kept")
            else:
                yield from answers_in(future.result())


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A connection to the scheduler at an address such as tcp://host:8786, or whose scheduler file is given.

    Raises:
        ClusterError: it cannot be reached.
    """
    for name in ("distributed", "tornado"):  # they tell of every lost connection, at length, and we tell it in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        told = json.loads(Path(address).read_text())["address"] if Path(address).is_file() else address
        scheme, place = parse_address(told)
        get_backend(scheme)
        parse_host_port(place)  # a client that is given nonsense would complain once more when it is collected
        client = Client(told, timeout=REACH_WITHIN_S, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClusterError(f"--cluster {address}: no Dask scheduler can be reached there: {why}") from None
    try:
        yield Cluster(client, address)
    finally:
        # What nobody waits for any more the scheduler drops once its client has gone, so nothing is cancelled before.
        # Ctrl-C may have come while a lock was held that the client's own thread needs: then waiting is of no use.
        with suppress(TimeoutError):
            client.close(timeout=CLOSE_WITHIN_S)


def _said(address: str, problem: BaseException) -> Exception:
    """A worker's exception: what the user can mend is one line, and a bug in a run stays one."""
    if isinstance(problem, ModuleNotFoundError):
        return ClusterError(f"--cluster {address}: a worker has no module {problem.name!r}: install moesim there")
    return RuntimeError(f"in a worker of {address}: {type(problem).__name__}: {problem}")
