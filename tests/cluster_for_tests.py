"""A real Dask scheduler and its workers, each a process of this machine."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class LocalCluster:
    """A scheduler whose file is `address`, and what keeps its processes."""

    folder: Path
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def address(self):
        return str(self.folder / "scheduler.json")

    def _start(self, name, *command, **environment):
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--scheduler-file", self.address],
                stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            )
        self.processes.append(process)
        return process

    def scheduler(self, **environment):
        self._start(
            "scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
            **environment,
        )
        self.wait_for(lambda: Path(self.address).exists())

    def worker(self, name, nanny=False, **environment):
        """A worker of one thread; with a nanny, one that is started again when it dies."""
        process = self._start(
            name, "worker", "--host", "127.0.0.1", "--nthreads", "1", "--local-directory", str(self.folder / name),
            "--nanny" if nanny else "--no-nanny", "--no-dashboard", **environment,
        )
        self.wait_for(lambda: "Registered to" in (self.folder / f"{name}.log").read_text())
        return process

    def wait_for(self, true, seconds=60):
        end = time.monotonic() + seconds
        while not true():
            assert all(each.poll() is None for each in self.processes), "a process of the cluster ended"
            assert time.monotonic() < end
            time.sleep(0.05)


@contextmanager
def cluster(folder):
    """No process yet; whatever is started ends with the block."""
    made = LocalCluster(folder)
    try:
        yield made
    finally:
        for process in reversed(made.processes):
            if process.poll() is None:
                process.terminate()
        for process in made.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
