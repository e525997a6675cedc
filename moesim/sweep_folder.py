"""The output of a sweep on disk. Whatever happens, every file in it is whole.

    OUT/finished.jsonl     every finished run, a checksummed line each: what a resumed sweep need not redo
    OUT/timelines/*.json   some layers of one token, for the report
    OUT/results.parquet    one row per run, in the order of the configuration
    OUT/sweep.json         what the sweep is; the last file that is written
    OUT/.lock              held while a process sweeps into the folder
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.atomic_write import atomic_write
from moesim.errors import ConfigError, InputError
from moesim.result import SCHEMA, Value

RESULTS, SWEEP, FINISHED, TIMELINES, LOCK = "results.parquet", "sweep.json", "finished.jsonl", "timelines", ".lock"
DIGITS = 16
"""Of a line's checksum, in hexadecimal."""


class SweepError(InputError):
    """The output of a sweep cannot be written."""


class SweepFolder:
    """The folder of one sweep, claimed by this process. `code` tells apart rows that other code has made."""

    def __init__(self, path: Path, code: str) -> None:
        self.path = path
        self._code = code

    def finished(self) -> dict[str, dict[str, Value]]:
        """The rows of finished runs by run hash; a torn or foreign line is left out, so its run is done again."""
        rows = {}
        try:
            lines = (self.path / FINISHED).read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise SweepError(f"{self.path / FINISHED}: cannot be read: {error.strerror or error}") from None
        for line in lines:
            if line[:DIGITS] == _checksum(line[DIGITS + 1 :]):
                content = json.loads(line[DIGITS + 1 :])
                if content["code"] == self._code and list(content["row"]) == SCHEMA.names:
                    rows[content["row"]["run_hash"]] = content["row"]
        return rows

    def keep(self, row: dict[str, Value]) -> None:
        """Append a finished run. When the disk is full the file stays as it was."""
        content = json.dumps({"code": self._code, "row": row}).encode()
        try:
            with (self.path / FINISHED).open("ab", buffering=0) as file:
                end = file.tell()
                # A line that a killed process left torn must not swallow this one.
                start = b"" if self._ends_with_newline(end) else b"\n"
                rest = memoryview(b"%b%b %b\n" % (start, _checksum(content), content))
                try:
                    while rest:  # on a disk that is nearly full a part is written first
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise SweepError(f"{self.path / FINISHED}: cannot be written: {error.strerror or error}") from None

    def _ends_with_newline(self, size: int) -> bool:
        if size == 0:
            return True
        with (self.path / FINISHED).open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"

    def write_results(self, rows: list[dict[str, Value]]) -> None:
        """Write results.parquet. Equal rows give equal bytes."""
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
        self._write(RESULTS, buffer.getvalue().to_pybytes())

    def write_description(self, content: dict[str, Any]) -> None:
        """Write sweep.json, which also says whose folder this is."""
        self._write(SWEEP, json.dumps(content, indent=1, default=str).encode())

    @property
    def described(self) -> bool:
        """Whether the folder says already whose it is."""
        return (self.path / SWEEP).exists()

    def has_timeline(self, name: str) -> bool:
        """Whether a timeline has been drawn before."""
        return (self.path / TIMELINES / f"{name}.json").exists()

    def write_timeline(self, name: str, content: dict[str, Any]) -> None:
        """Write the slices of a timeline."""
        self._write(f"{TIMELINES}/{name}.json", json.dumps(content, indent=1).encode())

    def drop_other_timelines(self, names: set[str]) -> None:
        """Delete what an earlier version of the configuration asked for."""
        for file in (self.path / TIMELINES).glob("*.json"):
            if file.stem not in names:
                file.unlink()

    def _write(self, name: str, content: bytes) -> None:
        with atomic_write(self.path / name, SweepError) as file:
            file.write(content)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:DIGITS].encode()


@contextmanager
def claimed(path: Path, name: str, code: str) -> Iterator[SweepFolder]:
    """The output folder, for this sweep alone; the claim ends with the process, however it ends.

    Raises:
        ConfigError: it holds something else, or another process is sweeping into it.
        SweepError: it cannot be written.
    """
    _refuse_what_is_not_ours(path, name)
    try:
        (path / TIMELINES).mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SweepError(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path}: another process is sweeping into this folder") from None
        _refuse_what_is_not_ours(path, name)  # again: it may have been claimed for another sweep meanwhile
        for part in path.rglob(".*.part"):
            part.unlink()  # a killed process left it
        yield SweepFolder(path, code)
    finally:
        os.close(lock)


def _refuse_what_is_not_ours(path: Path, name: str) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file; the output of a sweep is a folder")
    described = path / SWEEP
    if described.exists():
        try:
            other = json.loads(described.read_bytes())["name"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{described}: not the description of a sweep; choose another --out") from None
        if other != name:
            raise ConfigError(f"{path}: holds the sweep {other!r}, not {name!r}; choose another --out")
    elif path.is_dir() and not {entry.name for entry in path.iterdir()} <= {LOCK, TIMELINES}:
        raise ConfigError(f"{path}: is not empty and holds no sweep; choose another --out")
