"""Trace: what the router of a model chose for every token, and what predictors foresaw.

The recorded facts that every policy is replayed against; `docs/trace-format.md` describes the file. Rows are
tokens in the order in which the model ran them. Axes: T tokens, L MoE layers, K experts chosen, E experts of
a layer, M experts ranked by a predictor.
"""

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError
from moesim.trace_file import chunks, open_file, write_file
from moesim.trace_metadata import Availability, Request, TraceMetadata, join_metadata
from moesim.trace_validation import check_shapes, check_values

__all__ = [
    "DECODE",
    "PREFILL",
    "Availability",
    "ExpertIds",
    "Prediction",
    "Request",
    "Trace",
    "TraceMetadata",
    "concatenate",
    "id_dtype",
    "save_concatenated",
]

PREFILL: Final = 0
DECODE: Final = 1

_PREDICTED = "predicted."
_SCORES = ".scores"

ExpertIds = NDArray[np.unsignedinteger[Any]]
"""uint8 or uint16; the type's largest value means that there is no expert."""


def id_dtype(experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type that holds the ids of `experts` experts and the absent value beside them.

    Raises:
        TraceError: more than 65,535 experts.
    """
    if experts <= np.iinfo(np.uint8).max:
        return np.uint8
    if experts <= np.iinfo(np.uint16).max:
        return np.uint16
    raise TraceError(f"experts = {experts}: a trace holds at most {np.iinfo(np.uint16).max} experts a layer")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one predictor ranked for every token and layer, best first."""

    ranking: ExpertIds
    """[T, L, M], same type as `Trace.experts`; absent throughout where a layer could not be predicted."""
    scores: NDArray[np.float16] | None = None
    """[T, L, M], the predicted router probability of each."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded routing trace. Shapes, types and metadata agree from the start; `validate` checks values.

    Raises:
        TraceError: an array has the wrong shape or type, or the metadata say otherwise.
    """

    experts: ExpertIds
    """[T, L, K] uint8 or uint16: the router's choice, heaviest first."""
    weights: NDArray[np.float16] | None
    """[T, L, K]: the gate weight of each, as the model used it."""
    step: NDArray[np.uint32]
    """[T]: the forward pass that computed the token."""
    request: NDArray[np.uint32]
    """[T]: the sequence that the token belongs to."""
    position: NDArray[np.uint32]
    """[T]: which token of its sequence."""
    phase: NDArray[np.uint8]
    """[T]: PREFILL or DECODE."""
    metadata: TraceMetadata
    scores: NDArray[np.float16] | None = None
    """[T, L, E]: all router probabilities."""
    predicted: Mapping[str, Prediction] = field(default_factory=dict)
    path: Path | None = None
    """Where it was loaded from."""
    mapping: mmap.mmap | None = field(default=None, repr=False)
    """The mapped file that the arrays are views of; None for a trace in memory."""

    def __post_init__(self) -> None:
        check_shapes(self)

    @property
    def tokens(self) -> int:
        """T: the tokens, prefill and decode."""
        return int(self.experts.shape[0])

    @property
    def layers(self) -> int:
        """L: the MoE layers."""
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        """K: the experts chosen per token and layer."""
        return int(self.experts.shape[2])

    @property
    def n_experts(self) -> int:
        """E: the routed experts of a layer."""
        return self.metadata.experts

    @property
    def absent(self) -> int:
        """The id that means no expert: the largest value of the ids' type."""
        return int(np.iinfo(self.experts.dtype).max)

    @property
    def label(self) -> str:
        """The file it came from, or else its name: what error messages begin with."""
        return str(self.path) if self.path is not None else self.metadata.name

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name in the file."""
        named: dict[str, NDArray[Any] | None] = {
            "experts": self.experts, "weights": self.weights, "step": self.step, "request": self.request,
            "position": self.position, "phase": self.phase, "scores": self.scores,
        }
        for name, prediction in self.predicted.items():
            named[_PREDICTED + name] = prediction.ranking
            named[_PREDICTED + name + _SCORES] = prediction.scores
        return {name: array for name, array in named.items() if array is not None}

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Open a trace: the arrays stay on disk, memory-mapped.

        Header, shapes and metadata are checked; values are not, see `validate`.

        Raises:
            TraceError: the file is not a whole `moesim-trace/1`.
        """
        path = Path(path)
        file = open_file(path)
        metadata = TraceMetadata.from_json(file.metadata, str(path))
        return _from_arrays(file.arrays, metadata, path, file.mapping)

    def save(self, path: Path) -> None:
        """Write the trace to `path`: the whole file or nothing, and the same bytes for the same contents.

        Raises:
            TraceError: the file cannot be written.
        """
        parts = {name: [array] for name, array in self.arrays().items()}
        write_file(Path(path), self.metadata.to_json(), parts, self.release)

    def validate(self) -> None:
        """Check every value against the format, in chunks.

        Raises:
            TraceError: the first value that breaks a rule, with array, index, value and rule.
        """
        check_values(self)

    def release(self) -> None:
        """Give the pages that have been read back to the system; the next access reads the file again.

        A loop over a trace larger than memory calls it after each chunk. No effect on a trace in memory.
        """
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def chunks(self) -> Iterator[slice]:
        """Rows in chunks of a few MB over all arrays; the pages of a chunk are released after it."""
        for rows in chunks(self.tokens, sum(array[:1].nbytes for array in self.arrays().values())):
            yield rows
            self.release()

    def slice(self, start: int, stop: int) -> "Trace":
        """Rows `start` to `stop` (exclusive) as views, with the metadata of the requests that remain.

        Raises:
            TraceError: the range is empty or outside the trace.
        """
        if not 0 <= start < stop <= self.tokens:
            raise TraceError(f"{self.label}: rows {start} to {stop}: the trace has rows 0 to {self.tokens}")
        arrays = {name: array[start:stop] for name, array in self.arrays().items()}
        present = set(np.unique(arrays["request"]).tolist())
        requests = [each for each in self.metadata.requests if each.request in present]
        metadata = self.metadata.model_copy(update={"requests": requests})
        return _from_arrays(arrays, metadata, self.path, self.mapping)

    def first_layers(self, layers: int) -> "Trace":
        """The same tokens through the first so many MoE layers alone, as views.

        Raises:
            TraceError: the trace has not so many.
        """
        if not 1 <= layers <= self.layers:
            raise TraceError(f"{self.label}: first {layers} layers: the trace has {self.layers}")
        arrays = {name: array[:, :layers] if array.ndim == 3 else array for name, array in self.arrays().items()}
        about = {"layers": layers, "moe_layers": self.metadata.moe_layers[:layers]}
        return _from_arrays(arrays, self.metadata.model_copy(update=about), self.path, self.mapping)

    def content_hash(self) -> str:
        """Hex SHA-256 of arrays and metadata, whatever the file's layout."""
        digest = hashlib.sha256(self.metadata.to_json().encode())
        for name, array in sorted(self.arrays().items()):
            digest.update(f"\n{name} {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
            for rows in chunks(len(array), array[:1].nbytes):
                digest.update(np.ascontiguousarray(array[rows], array.dtype.newbyteorder("<")).data)
                self.release()
        return digest.hexdigest()


def _from_arrays(
    arrays: Mapping[str, NDArray[Any]], metadata: TraceMetadata, path: Path | None, mapping: mmap.mmap | None
) -> Trace:
    """The Trace of a file's named arrays.

    Raises:
        TraceError: an array is missing or unknown.
    """
    where = str(path) if path is not None else metadata.name
    left = dict(arrays)
    for name in ("experts", "step", "request", "position", "phase"):
        if name not in left:
            raise TraceError(f"{where}: array {name!r} is missing: every trace has it")
    predicted = {
        name.removeprefix(_PREDICTED): Prediction(left.pop(name), left.pop(name + _SCORES, None))
        for name in sorted(left)
        if name.startswith(_PREDICTED) and not name.endswith(_SCORES)
    }
    trace = Trace(
        experts=left.pop("experts"), weights=left.pop("weights", None), step=left.pop("step"),
        request=left.pop("request"), position=left.pop("position"), phase=left.pop("phase"),
        scores=left.pop("scores", None), predicted=predicted, metadata=metadata, path=path, mapping=mapping,
    )
    if left:
        raise TraceError(f"{where}: array {min(left)!r} is not part of the format")
    return trace


def concatenate(traces: Sequence[Trace], *, renumber: bool = True) -> Trace:
    """One trace after the other, in memory.

    With `renumber`, they are separate recordings: steps and requests of each are counted on from the one
    before. Without, they are pieces of one recording and keep their numbers, so that the slices of a trace
    join to that trace.

    Raises:
        TraceError: nothing to join, or shapes, models, predictors or arrays that differ.
    """
    parts, metadata = joined_parts(traces, renumber=renumber)
    arrays = {name: np.concatenate(each) for name, each in parts.items()}
    return _from_arrays(arrays, metadata, None, None)


def save_concatenated(traces: Sequence[Trace], path: Path, *, renumber: bool = True) -> None:
    """Write `concatenate(traces)` without holding it in memory.

    Raises:
        TraceError: as `concatenate`; or the file cannot be written.
    """
    parts, metadata = joined_parts(traces, renumber=renumber)

    def release() -> None:
        for trace in traces:
            trace.release()

    write_file(Path(path), metadata.to_json(), parts, release)


def joined_parts(
    traces: Sequence[Trace], *, renumber: bool
) -> tuple[dict[str, list[NDArray[Any]]], TraceMetadata]:
    """The arrays of a concatenation, each as its parts in order, and its metadata."""
    if not traces:
        raise TraceError("nothing to concatenate: give at least one trace")
    first = traces[0]
    for other in traces[1:]:
        pair = f"{first.label} and {other.label}"
        for name, one, two in (
            ("arrays", sorted(first.arrays()), sorted(other.arrays())),
            *((f"metadata.{key}", getattr(first.metadata, key), getattr(other.metadata, key))
              for key in ("model", "layers", "experts", "top_k", "moe_layers", "predictors")),
            *((f"{name} rows", list(array.shape[1:]), list(other.arrays()[name].shape[1:]))
              for name, array in first.arrays().items() if name in other.arrays()),
            ("expert ids", str(first.experts.dtype), str(other.experts.dtype)),
        ):
            if one != two:
                raise TraceError(f"{pair} cannot be concatenated: {name} differ: {one} and {two}")
    parts: dict[str, list[NDArray[Any]]]
    parts = {name: [trace.arrays()[name] for trace in traces] for name in first.arrays()}
    request_offsets = [0] * len(traces)
    if renumber:
        steps, requests = 0, 0
        for index, trace in enumerate(traces):
            parts["step"][index] = _shifted(trace, "step", steps)
            parts["request"][index] = _shifted(trace, "request", requests)
            request_offsets[index] = requests
            steps = int(parts["step"][index].max()) + 1
            requests = int(parts["request"][index].max()) + 1
    return parts, join_metadata([trace.metadata for trace in traces], request_offsets)


def _shifted(trace: Trace, name: str, offset: int) -> NDArray[np.uint32]:
    numbers: NDArray[np.uint32] = trace.arrays()[name]
    if int(numbers.max()) + offset > np.iinfo(np.uint32).max:
        raise TraceError(f"{trace.label}: {name} counted on from {offset} passes the largest uint32")
    return numbers + np.uint32(offset)
