"""A recording while it is being made: rows on disk as they come, so that memory stays flat and nothing done is lost.

    .NAME.recording/journal.jsonl  a line on what is recorded, then a line per finished batch, each synced to disk
    .NAME.recording/ARRAY.rows     the rows of each array, as bytes

Rows are appended before the journal says that they are there; whoever opens the folder again cuts off what the journal
does not vouch for. So a process may be killed at any instant.
"""

import fcntl
import json
import math
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.record.recording import Recording
from moesim.trace_file import write_file
from moesim.trace_metadata import Request, TraceMetadata

_JOURNAL = "journal.jsonl"


class RecordingFolder:
    """The folder of the trace `out`, locked for this process.

    `description` is what decides the rows: model, prompts, options. A folder that was begun with another is refused.

    Raises:
        InputError: it cannot be written, another process records into it, or it was begun with something else.
    """

    def __init__(self, out: Path, description: Mapping[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.recording")
        self._out = out
        self._files: dict[str, BinaryIO] = {}
        self._layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.requests: list[Request] = []
        self.rows = self.steps = 0
        try:
            self.path.mkdir(exist_ok=True)
            self._journal = (self.path / _JOURNAL).open("a+b")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        try:
            self._lock()
            self._resume(json.loads(json.dumps(description)))
        except BaseException:
            self._journal.close()
            raise

    def append(self, rows: Recording) -> None:
        """Write rows behind those there; they count once `commit` says so."""
        try:
            for name, array in rows.arrays().items():
                self._layout.setdefault(name, (array.dtype.str, array.shape[1:]))
                if name not in self._files:
                    self._files[name] = self._array(name).open("ab")
                self._files[name].write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        self.rows += len(rows.step)
        self.steps = max(self.steps, int(rows.step[-1]) + 1)

    def commit(self, requests: Sequence[Request]) -> None:
        """`requests` are complete: from here on their rows survive whatever happens."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self.requests.extend(requests)
            self._write_line({
                "rows": self.rows,
                "steps": self.steps,
                "arrays": self._layout,
                "requests": [each.model_dump() for each in requests],
            })
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def finish(self, metadata: TraceMetadata) -> None:
        """Write the trace, whole or not at all, and remove the folder.

        Raises:
            TraceError: it cannot be written.
        """
        for file in self._files.values():
            file.close()
        mappings: list[mmap.mmap] = []
        parts: dict[str, list[NDArray[Any]]] = {}
        for name, (dtype, shape) in self._layout.items():
            with self._array(name).open("rb") as rows:
                mappings.append(mmap.mmap(rows.fileno(), 0, access=mmap.ACCESS_READ))
            parts[name] = [np.frombuffer(mappings[-1], dtype).reshape(-1, *shape)]

        def release() -> None:
            # Pages that have been written out again would otherwise count as ours until the end.
            for mapping in mappings:
                if hasattr(mmap, "MADV_DONTNEED"):
                    mapping.madvise(mmap.MADV_DONTNEED)

        write_file(self._out, metadata.to_json(), parts, release)
        self.close()
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Let go of the files; the folder stays for the next time."""
        for file in self._files.values():
            file.close()
        self._journal.close()

    def _array(self, name: str) -> Path:
        return self.path / f"{name}.rows"

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{self._out}: another process is recording it") from None

    def _resume(self, description: dict[str, Any]) -> None:
        self._journal.seek(0)
        content = self._journal.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._journal.truncate(len(whole))  # a line that was being written when the process died
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            self._write_line(description)
            return
        for key in [*description, *lines[0]]:
            if lines[0].get(key) != description.get(key):
                raise InputError(
                    f"{self.path}: begun with {key} = {lines[0].get(key)!r}, not {description.get(key)!r}: "
                    "remove it, or record to another file"
                )
        for line in lines[1:]:
            self.rows, self.steps = line["rows"], line["steps"]
            self._layout = {name: (dtype, tuple(shape)) for name, (dtype, shape) in line["arrays"].items()}
            self.requests.extend(Request(**each) for each in line["requests"])
        for file in self.path.glob("*.rows"):
            name = file.name.removesuffix(".rows")
            dtype, shape = self._layout.get(name, ("u1", (0,)))
            os.truncate(file, self.rows * np.dtype(dtype).itemsize * math.prod(shape))

    def _write_line(self, content: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(content).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
