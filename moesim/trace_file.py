"""Traces on disk: safetensors, read through a memory map and written part by part.

The safetensors library checks the header; the arrays are then views of the mapped file, so a trace larger
than memory opens at once. Writing streams too: an array may be given as several parts, one after the other.
"""

import json
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from moesim.atomic_write import atomic_write
from moesim.errors import TraceError

METADATA_KEY = "moesim"
CHUNK_BYTES = 4 << 20
"""What is read, checked or written at a time."""
_DTYPES = {"U8": "<u1", "U16": "<u2", "U32": "<u4", "F16": "<f2"}
_LENGTH_BYTES = 8


@dataclass(frozen=True, eq=False)
class TraceFile:
    """The open file: its metadata text and its arrays, which live in `mapping`."""

    metadata: str
    arrays: dict[str, NDArray[Any]]
    mapping: mmap.mmap


def open_file(path: Path) -> TraceFile:
    """Map a safetensors file with a `moesim` metadata entry.

    Raises:
        TraceError: unreadable, empty, truncated, not safetensors, no moesim metadata, an array of a type that
            no trace has. Nothing of the size that the header claims is allocated.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise TraceError(f"{path}: not a plain file: a trace is memory-mapped")
        with path.open("rb") as file:
            _check_container(path, size)
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(header_bytes))
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    metadata = header.pop("__metadata__", None) or {}
    if METADATA_KEY not in metadata:
        raise TraceError(f"{path}: safetensors, but no trace: its metadata has no key {METADATA_KEY!r}")
    start = _LENGTH_BYTES + header_bytes
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise TraceError(f"{path}: {name} has type {entry['dtype']}: a trace holds {', '.join(_DTYPES)}")
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if (count := math.prod(shape)) == 0:
            raise TraceError(f"{path}: {name} has shape {shape}: no axis of a trace is empty")
        arrays[name] = np.frombuffer(mapping, dtype, count, start + entry["data_offsets"][0]).reshape(shape)
    return TraceFile(metadata[METADATA_KEY], arrays, mapping)


def _check_container(path: Path, size: int) -> None:
    """Refuse what the safetensors library refuses, and say it in our words where it is a common case."""
    if size == 0:
        raise TraceError(f"{path}: the file is empty")
    try:
        with safe_open(path, framework="numpy"):
            return
    except SafetensorError as error:
        reason = str(error)
    if "IncompleteBuffer" in reason or "incomplete" in reason.lower():
        raise TraceError(f"{path}: truncated or damaged: the header does not claim the {size} bytes it has")
    raise TraceError(f"{path}: not a safetensors file ({size} bytes): {' '.join(reason.split())}")


def write_file(
    path: Path,
    metadata: str,
    arrays: Mapping[str, Sequence[NDArray[Any]]],
    after_chunk: Callable[[], object] = lambda: None,
) -> None:
    """Write a trace atomically. Each array is given as parts that follow each other along the first axis.

    The same contents give the same bytes, whatever the parts. `after_chunk` may release what was read.

    Raises:
        TraceError: the file cannot be written; nothing is left behind.
    """
    # widest type first keeps every array aligned, as the safetensors library does
    order = sorted(arrays, key=lambda name: (-arrays[name][0].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {METADATA_KEY: metadata}}
    offset = 0
    for name in order:
        parts = arrays[name]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        end = offset + math.prod(shape) * parts[0].dtype.itemsize
        header[name] = {"dtype": _dtype_name(parts[0].dtype), "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with atomic_write(path, TraceError) as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in order:
            for part in arrays[name]:
                for rows in chunks(len(part), part[:1].nbytes):
                    chunk = np.ascontiguousarray(part[rows], part.dtype.newbyteorder("<"))
                    file.write(chunk.data)
                    after_chunk()


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return next(name for name, code in _DTYPES.items() if np.dtype(code) == dtype)


def chunks(rows: int, bytes_per_row: int) -> list[slice]:
    """Consecutive slices of `rows` rows, each of about CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // max(1, bytes_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
