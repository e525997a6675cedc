"""The plain form as JSON lines: one object per token, layer and slot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import TraceError
from moesim.trace import Trace
from moesim.trace_import.labels import Labels
from moesim.trace_import.lines import read_lines
from moesim.trace_import.plain_rows import PHASES, Rows, assemble, check_columns

_BATCH_ROWS = 65_536


def read(path: Path, labels: Labels) -> Trace:
    """Read a JSON lines file.

    Raises:
        TraceError: a line that is no object with the columns of the first, or whatever `assemble` refuses.
    """
    return assemble(path, "jsonl", _batches(path), labels)


def _batches(path: Path) -> Iterator[Rows]:
    names: list[str] = []
    values: list[list[Any]] = []
    lines: list[int] = []
    for number, line in read_lines(path):
        row = _parse(path, number, line)
        if not names:
            check_columns(path, row, f"line {number}")
            names = sorted(row)
        if row.keys() != set(names):
            odd = sorted(row.keys() ^ set(names))[0]
            raise TraceError(f"{path}, line {number}: {odd!r} is {'new' if odd in row else 'missing'}: "
                             "every line has the columns of the first")
        values.append([_number(path, number, name, row[name]) for name in names])
        lines.append(number)
        if len(lines) == _BATCH_ROWS:
            yield _rows(names, values, lines)
            values, lines = [], []
    if lines:
        yield _rows(names, values, lines)


def _rows(names: list[str], values: list[list[Any]], lines: list[int]) -> Rows:
    columns = dict(zip(names, zip(*values, strict=True), strict=True))
    dtypes = {name: np.float64 if name == "weight" else np.int64 for name in names}
    return Rows({name: np.array(columns[name], dtypes[name]) for name in names}, np.array(lines, np.int64))


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TraceError(f"{path}, line {number}: {str(row)[:40]}: one JSON object per line belongs here")
    return row


def _number(path: Path, number: int, name: str, value: Any) -> int | float:
    """The number of a cell: whole except for weights, small enough for int64; a phase may be a word."""
    if name == "phase" and str(value) in PHASES:
        return PHASES[str(value)]
    whole = type(value) is int and abs(value) < 2**63
    if whole or (name == "weight" and type(value) is float):
        return value  # type: ignore[no-any-return]
    raise TraceError(f"{path}, line {number}: {name} = {str(value)[:40]!r}: a {'' if name == 'weight' else 'whole '}"
                     "number belongs here")
