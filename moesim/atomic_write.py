"""Write a file whole or not at all: into a temporary neighbour first, renamed at the end."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from moesim.errors import InputError


@contextmanager
def atomic_write(path: Path, error_type: type[InputError] = InputError) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends, and leaves nothing behind when the block fails.

    A reader that has the old file open or mapped keeps the old contents.

    Raises:
        error_type: the system cannot write (no folder, no permission, disk full), in one line.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise error_type(f"{path}: cannot be written: {error.strerror or error}") from None
