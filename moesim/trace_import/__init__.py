"""Traces that others recorded, in their own formats, made into `moesim-trace/1`.

One module per format, each with `read(path, labels) -> Trace`:

    csv     a plain table with one row per chosen expert (docs/trace-format.md)
    jsonl   the same, one JSON object per line
    nvmoe   one JSON array of [layer, expert] pairs per generated token
    npz     NumPy arrays `experts` and `offsets`, as GPT-OSS-MoE-ExpertFingerprinting publishes them

Text is read line by line and archives chunk by chunk; what is kept in memory is the finished trace.
"""

from collections.abc import Callable
from pathlib import Path

from moesim.errors import TraceError, nearest
from moesim.trace import Trace
from moesim.trace_import import npz, nvmoe, plain_csv, plain_jsonl
from moesim.trace_import.labels import Labels
from moesim.trace_import.lines import read_lines
from moesim.trace_import.plain_rows import REQUIRED

__all__ = ["KINDS", "Labels", "detect_kind", "import_trace"]

KINDS: dict[str, Callable[[Path, Labels], Trace]] = {
    "csv": plain_csv.read,
    "jsonl": plain_jsonl.read,
    "npz": npz.read,
    "nvmoe": nvmoe.read,
}


def import_trace(path: Path, kind: str | None = None, labels: Labels | None = None) -> Trace:
    """Read a foreign recording as a validated Trace.

    `kind` is one of KINDS, by default what the file's first bytes look like. `labels` says what the file does not.

    Raises:
        TraceError: unreadable, of no known kind, or holding something that no trace may hold; in one line with
            the place in the file where that is known.
    """
    path = Path(path)
    kind = detect_kind(path) if kind is None else kind
    if kind not in KINDS:
        raise TraceError(f"{path}: kind {kind!r} is unknown: {nearest(kind, KINDS)}")
    trace = KINDS[kind](path, labels or Labels())
    try:
        trace.validate()
    except TraceError as error:  # say the file that was read, not the name that the trace would have
        raise TraceError(f"{path}: {str(error).removeprefix(f'{trace.label}: ')}") from None
    return trace


def detect_kind(path: Path) -> str:
    """The kind of a file, from its first line.

    Raises:
        TraceError: no importer reads such a file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if start.startswith(b"PK"):
        return "npz"
    if start[8:9] == b"{" and start[:8].count(0):
        raise TraceError(f"{path}: a safetensors file: moesim reads it as it is, there is nothing to import")
    first = next((line for _, line in read_lines(path)), None)
    if first is None:
        raise TraceError(f"{path}: the file is empty")
    first = first.lstrip()
    if first.startswith(b"["):
        return "nvmoe"
    if first.startswith(b"{"):
        return "jsonl"
    if len(set(first.strip().split(b",")) & {name.encode() for name in REQUIRED}) >= 3:
        return "csv"
    raise TraceError(
        f"{path}: the first line {first[:40]!r} looks like none of {', '.join(KINDS)}: say which it is with --kind"
    )
