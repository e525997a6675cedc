"""One array of an .npz archive, checked before anything of its claimed size is allocated. Never unpickles."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from moesim.errors import TraceError

_CHUNK_BYTES = 1 << 22


def read_member(path: Path, name: str, kinds: str, axes: int) -> NDArray[Any]:
    """Array `name` of an archive, of one of the NumPy type `kinds` ('i', 'u', 'f') and with so many axes.

    Raises:
        TraceError: no archive, no such array, another type or shape, or fewer bytes than its header claims.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                held = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist()[:6])
                raise TraceError(f"{path}: it holds no array {name!r}, only {held or 'nothing'}")
            with archive.open(f"{name}.npy") as member:
                size = archive.getinfo(f"{name}.npy").file_size
                shape, fortran, dtype = _header(member)
                if dtype.kind not in kinds or len(shape) != axes or fortran:
                    order = " in Fortran order" if fortran else ""
                    raise TraceError(f"{path}: {name} is {dtype} {shape}{order}: it has {axes} axes in C order "
                                     f"and a type of kind {' or '.join(kinds)}")
                claimed = math.prod(shape) * dtype.itemsize
                if member.tell() + claimed != size:
                    raise TraceError(f"{path}: {name} claims {claimed} bytes, the archive holds {size - member.tell()}")
                return _fill(path, name, member, shape, dtype)
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: no NumPy archive: {' '.join(str(error).split())}") from None


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(member)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"npy version {version} is unknown")
    shape, fortran, dtype = reader(member)
    return shape, fortran, dtype


def _fill(path: Path, name: str, member: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Decompress into the array. A header can claim what a lying archive does not hold: grow with what arrives."""
    claimed = math.prod(shape) * dtype.itemsize
    data = bytearray()
    while len(data) < claimed:
        part = member.read(min(_CHUNK_BYTES, claimed - len(data)))
        if not part:
            raise TraceError(f"{path}: {name} claims {claimed} bytes and ends after {len(data)}")
        data += part
    return np.frombuffer(data, dtype).reshape(shape)
