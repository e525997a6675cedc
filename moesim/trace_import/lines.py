"""Lines of a text file, one at a time and of bounded length."""

from collections.abc import Iterator
from pathlib import Path

from moesim.errors import TraceError

LONGEST_LINE_BYTES = 1 << 24
"""A line that is longer is no recording of one token or one expert."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank.

    Raises:
        TraceError: the file cannot be read, or a line is longer than LONGEST_LINE_BYTES.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE_BYTES):
                number += 1
                if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
                    raise TraceError(f"{path}, line {number}: longer than {LONGEST_LINE_BYTES} bytes")
                if not line.isspace():
                    yield number, line
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
