"""The rules of `moesim-trace/1`: what breaks one is named in one line, with array, index, value and rule."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError

if TYPE_CHECKING:
    from moesim.trace import Trace


def check_shapes(trace: "Trace") -> None:
    """Check types, shapes and metadata against each other, without reading a value.

    Raises:
        TraceError: the first that disagrees.
    """
    experts, metadata, where = trace.experts, trace.metadata, trace.label
    if experts.dtype not in (np.uint8, np.uint16):
        raise TraceError(f"{where}: experts has type {experts.dtype}: expert ids are uint8 or uint16")
    if experts.ndim != 3 or 0 in experts.shape:
        raise TraceError(f"{where}: experts has shape {experts.shape}: it is [tokens, layers, top-k], none 0")
    for axis, name in ((1, "layers"), (2, "top_k")):
        if experts.shape[axis] != getattr(metadata, name):
            raise TraceError(
                f"{where}: experts has shape {experts.shape}: metadata.{name} = {getattr(metadata, name)}"
            )
    if metadata.experts > trace.absent:
        raise TraceError(
            f"{where}: metadata.experts = {metadata.experts}: {experts.dtype} ids hold at most {trace.absent}"
        )
    tokens, layers, _ = experts.shape
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "step": (np.dtype(np.uint32), (tokens,)),
        "request": (np.dtype(np.uint32), (tokens,)),
        "position": (np.dtype(np.uint32), (tokens,)),
        "phase": (np.dtype(np.uint8), (tokens,)),
        "weights": (np.dtype(np.float16), experts.shape),
        "scores": (np.dtype(np.float16), (tokens, layers, metadata.experts)),
    }
    for name, prediction in trace.predicted.items():
        ranked = prediction.ranking.shape[-1] if prediction.ranking.ndim == 3 else 0
        if not 1 <= ranked <= metadata.experts:
            raise TraceError(
                f"{where}: predicted.{name} has shape {prediction.ranking.shape}: it is [tokens, layers, "
                f"ranked], with 1 to {metadata.experts} ranked"
            )
        expected[f"predicted.{name}"] = (experts.dtype, (tokens, layers, ranked))
        expected[f"predicted.{name}.scores"] = (np.dtype(np.float16), (tokens, layers, ranked))
    for name, array in trace.arrays().items():
        if name == "experts":
            continue
        dtype, shape = expected[name]
        if array.dtype != dtype:
            raise TraceError(f"{where}: {name} has type {array.dtype}: it is {dtype}")
        if array.shape != shape:
            raise TraceError(
                f"{where}: {name} has shape {array.shape}: beside experts {experts.shape} it is {shape}"
            )
    for name in sorted(set(trace.predicted) ^ set(metadata.predictors)):
        if name in trace.predicted:
            raise TraceError(f"{where}: predicted.{name}: metadata.predictors does not list {name!r}")
        raise TraceError(f"{where}: metadata.predictors lists {name!r}: there is no array predicted.{name}")


def check_values(trace: "Trace") -> None:
    """Check every value, chunk by chunk.

    Raises:
        TraceError: the first value, array by array within a chunk, that breaks a rule.
    """
    metadata = trace.metadata
    last_step = 0
    seen = _Positions(trace.label)
    for rows in trace.chunks():
        first = rows.start
        chunk = {name: array[rows] for name, array in trace.arrays().items()}
        _check_ids(trace, "experts", chunk["experts"], first)
        if "weights" in chunk:
            _check_scores(trace, "weights", chunk["weights"], chunk["experts"], first)
        step = chunk["step"]
        before = np.concatenate([np.array([last_step], np.uint32), step[:-1]])
        _refuse(trace, "step", step, step < before, first, "steps never decrease")
        last_step = int(step[-1])
        _refuse(trace, "phase", chunk["phase"], chunk["phase"] > 1, first, "0 is prefill, 1 is decode")
        seen.check(chunk["request"], chunk["position"], first)
        if "scores" in chunk:
            scores = chunk["scores"]
            outside = ~((scores >= 0) & (scores <= 1))
            _refuse(trace, "scores", scores, outside, first, "router probabilities lie between 0 and 1")
        for name, availability in metadata.predictors.items():
            key = f"predicted.{name}"
            early = chunk[key][:, : availability.layer_offset]
            _refuse(
                trace, key, early, early != trace.absent, first,
                f"the first {availability.layer_offset} layers cannot be predicted with layer_offset "
                f"{availability.layer_offset} and hold {trace.absent}",
            )
            _check_ids(trace, key, chunk[key], first)
            if f"{key}.scores" in chunk:
                _check_scores(trace, f"{key}.scores", chunk[f"{key}.scores"], chunk[key], first)
    for each in metadata.requests:
        if each.request not in seen.requests:
            raise TraceError(
                f"{trace.label}: metadata.requests lists request {each.request}: the array request lacks it"
            )


def _refuse(
    trace: "Trace", name: str, array: NDArray[Any], broken: NDArray[np.bool_], first: int, rule: str
) -> None:
    """Raise for the first true entry of `broken`; `first` is the row at which the chunk starts."""
    if not broken.any():
        return
    index = [int(i) for i in np.unravel_index(int(broken.argmax()), broken.shape)]
    value = array[tuple(index)]
    index[0] += first
    raise TraceError(f"{trace.label}: {name}{index} = {value}: {rule}")


def _check_ids(trace: "Trace", name: str, ids: NDArray[Any], first: int) -> None:
    """Expert ids: below the number of experts or absent, no gap before a present one, none twice."""
    absent = trace.absent
    outside = (ids >= trace.n_experts) & (ids != absent)
    rule = f"expert ids are below {trace.n_experts}, {absent} means absent"
    _refuse(trace, name, ids, outside, first, rule)
    after_gap = (ids[..., 1:] != absent) & (ids[..., :-1] == absent)
    rule = "absent values come last in a row: an expert follows this one"
    _refuse(trace, name, ids[..., :-1], after_gap, first, rule)
    ordered = np.sort(ids, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != absent)
    if twice.any():
        token, layer = (int(i) for i in np.argwhere(twice)[0][:2])
        row = ids[token, layer].tolist()
        slot = next(k for k in range(len(row)) if row[k] != absent and row[k] in row[:k])
        index = [first + token, layer, slot]
        raise TraceError(
            f"{trace.label}: {name}{index} = {row[slot]}: the experts of a row differ, this one repeats slot "
            f"{row.index(row[slot])}"
        )


def _check_scores(trace: "Trace", name: str, scores: NDArray[Any], ids: NDArray[Any], first: int) -> None:
    """Weights or scores of ids: finite, not negative, heaviest first, 0 where the id is absent."""
    unreal = ~(np.isfinite(scores) & (scores >= 0))
    _refuse(trace, name, scores, unreal, first, "it is finite and not negative")
    _refuse(trace, name, scores, (ids == trace.absent) & (scores != 0), first, "an absent expert has 0")
    rising = np.zeros(scores.shape, np.bool_)
    rising[..., 1:] = scores[..., 1:] > scores[..., :-1]
    _refuse(trace, name, scores, rising, first, "heaviest first: it is larger than the one before it")


class _Positions:
    """The last position of every request so far; memory grows with the requests, not with the tokens."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last: dict[int, int] = {}

    @property
    def requests(self) -> set[int]:
        return set(self._last)

    def check(self, request: NDArray[np.uint32], position: NDArray[np.uint32], first: int) -> None:
        """Positions of a request strictly increase, which also makes (request, position) unique."""
        order = np.argsort(request, kind="stable")
        owner, place = request[order].astype(np.int64), position[order].astype(np.int64)
        starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        before = np.empty_like(place)
        before[1:] = place[:-1]
        before[starts] = [self._last.get(number, -1) for number in owner[starts].tolist()]
        broken = order[place <= before]
        if broken.size:
            row = int(broken.min())
            raise TraceError(
                f"{self._label}: position[{first + row}] = {position[row]}: the positions of request "
                f"{request[row]} increase, this one follows {int(before[np.flatnonzero(order == row)[0]])}"
            )
        ends = np.concatenate([starts[1:], [len(owner)]]) - 1
        self._last.update(zip(owner[ends].tolist(), place[ends].tolist(), strict=True))
