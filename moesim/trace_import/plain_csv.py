"""The plain form as CSV: a header line with the columns' names, then one row per token, layer and slot."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from moesim.errors import TraceError
from moesim.trace import Trace
from moesim.trace_import.labels import Labels
from moesim.trace_import.lines import read_lines
from moesim.trace_import.plain_rows import PHASES, REQUIRED, Rows, assemble, check_columns

_BLOCK_BYTES = 1 << 22


def read(path: Path, labels: Labels) -> Trace:
    """Read a CSV file.

    Raises:
        TraceError: another header, a value that is no number, or whatever `assemble` refuses.
    """
    return assemble(path, "csv", _batches(path), labels)


def _batches(path: Path) -> Iterator[Rows]:
    header = next((line for _, line in read_lines(path)), b"").decode("utf-8-sig", "replace").rstrip("\r\n")
    check_columns(path, header.split(","), "line 1")
    types = {name: pa.int64() for name in REQUIRED} | {"weight": pa.float64(), "phase": pa.string()}
    line = 2
    try:
        reader = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
        )
        check_columns(path, reader.schema.names, "line 1")  # as Arrow reads them, quotes and all
        for batch in reader:
            lines = np.arange(line, line + len(batch), dtype=np.int64)
            line += len(batch)
            columns = {}
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if column.null_count:
                    empty = int(np.asarray(column.is_null()).argmax())
                    raise TraceError(f"{path}, line {lines[empty]}: {name} is empty")
                columns[name] = _phases(path, column, lines) if name == "phase" else column.to_numpy()
            yield Rows(columns, lines)
    except pa.ArrowInvalid as error:
        raise TraceError(f"{path}: {_in_our_words(str(error), header.split(','))}") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None


def _in_our_words(message: str, names: list[str]) -> str:
    """Arrow's complaint as line, column and rule; its own words, on one line, where it is another complaint."""
    found = re.search(r"column #(\d+): Row #(\d+): .*invalid value '(.*)'", message, re.DOTALL)
    if found is None:
        return " ".join(message.split()).replace("Row #", "line ")
    name = names[int(found[1])]
    return f"line {found[2]}: {name} = {found[3][:40]!r}: a {'' if name == 'weight' else 'whole '}number belongs here"


def _phases(path: Path, column: pa.Array, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 and 1 for the words or digits of a column."""
    encoded = column.dictionary_encode()
    codes = []
    for text in encoded.dictionary.to_pylist():
        if text.strip() not in PHASES:
            row = column.to_pylist().index(text)
            raise TraceError(f"{path}, line {lines[row]}: phase = {text!r}: it is {', '.join(PHASES)}")
        codes.append(PHASES[text.strip()])
    phases: NDArray[np.int64] = np.array(codes, np.int64)[np.asarray(encoded.indices)]
    return phases
