"""The plain form of a trace, as rows: one per token, layer and slot. CSV and JSONL are two spellings of it.

The rows of a token follow each other, in any order; tokens come in the order in which the model ran them. A slot
without a row is absent. Layers are numbered as the model numbers them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError, nearest
from moesim.trace import Trace, id_dtype
from moesim.trace_import.labels import Labels

REQUIRED = ("step", "request", "position", "phase", "layer", "slot", "expert")
OPTIONAL = ("weight",)
PHASES = {"0": 0, "1": 1, "prefill": 0, "decode": 1}
LARGEST = {
    "step": 2**32 - 1, "request": 2**32 - 1, "position": 2**32 - 1, "phase": 1,
    "layer": 65534, "slot": 65534, "expert": 65534, "weight": float(np.finfo(np.float16).max),
}
_ABSENT = np.uint16(65535)
_THINNEST = 100
"""Refuse rows that fill less than one in so many places: layer or slot numbers must be wrong."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows of a file: one array per column, int64 (`weight`: float64), and each row's line."""

    columns: dict[str, NDArray[Any]]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)

    def part(self, start: int, stop: int) -> "Rows":
        """Rows `start` to `stop`."""
        return Rows({name: column[start:stop] for name, column in self.columns.items()}, self.lines[start:stop])

    def after(self, before: "Rows") -> "Rows":
        """These rows behind those of `before`."""
        columns = {name: np.concatenate([before.columns[name], column]) for name, column in self.columns.items()}
        return Rows(columns, np.concatenate([before.lines, self.lines]))


@dataclass(frozen=True, eq=False)
class _Block:
    """Whole tokens: their [t] columns, the layers they use and their dense [t, layers, slots] arrays."""

    tokens: dict[str, NDArray[Any]]
    layers: NDArray[np.int64]
    experts: NDArray[np.uint16]
    weights: NDArray[np.float16] | None


def check_columns(path: Path, names: Iterable[str], where: str) -> None:
    """Raise TraceError unless `names` are the columns of the plain form."""
    given = list(names)
    for name in given:
        if name not in REQUIRED + OPTIONAL:
            raise TraceError(f"{path}, {where}: column {name!r} is unknown: {nearest(name, REQUIRED + OPTIONAL)}")
        if given.count(name) > 1:
            raise TraceError(f"{path}, {where}: column {name!r} comes twice")
    for name in REQUIRED:
        if name not in given:
            raise TraceError(f"{path}, {where}: column {name!r} is missing: rows have {', '.join(REQUIRED)}")


def assemble(path: Path, kind: str, batches: Iterable[Rows], labels: Labels) -> Trace:
    """The trace of a file's rows, which come in batches of any size.

    Raises:
        TraceError: a value outside its range, a slot given twice, a token whose rows disagree, no rows at all.
    """
    blocks = []
    open_token: Rows | None = None  # its rows may go on in the next batch
    for batch in batches:
        if not len(batch):
            continue
        _check_ranges(path, batch)
        rows = batch if open_token is None else batch.after(open_token)
        last = _token_starts(rows)[-1]
        if last:
            blocks.append(_block(path, rows.part(0, last)))
        open_token = rows.part(last, len(rows))
    if open_token is None:
        raise TraceError(f"{path}: no row holds a choice of the router")
    blocks.append(_block(path, open_token))
    return _join(path, kind, blocks, labels)


def _check_ranges(path: Path, rows: Rows) -> None:
    for name, column in rows.columns.items():
        outside = ~((column >= 0) & (column <= LARGEST[name]))
        if outside.any():
            index = int(outside.argmax())
            raise TraceError(
                f"{path}, line {rows.lines[index]}: {name} = {column[index]}: it is from 0 to {LARGEST[name]:.0f}"
            )


def _token_starts(rows: Rows) -> NDArray[np.int64]:
    request, position = rows.columns["request"], rows.columns["position"]
    changed = (request[1:] != request[:-1]) | (position[1:] != position[:-1])
    return np.flatnonzero(np.concatenate([[True], changed]))


def _block(path: Path, rows: Rows) -> _Block:
    """Whole tokens, from rows to dense arrays."""
    columns = rows.columns
    starts = _token_starts(rows)
    token = np.repeat(np.arange(len(starts)), np.diff([*starts, len(rows)]))
    for name in ("step", "phase"):
        differs = columns[name] != columns[name][starts][token]
        if differs.any():
            index = int(differs.argmax())
            raise TraceError(
                f"{path}, line {rows.lines[index]}: {name} = {columns[name][index]}: "
                f"the token's first row, line {rows.lines[starts[token[index]]]}, has another"
            )
    layers, layer = np.unique(columns["layer"], return_inverse=True)
    shape = (len(starts), len(layers), int(columns["slot"].max()) + 1)
    if np.prod(shape, dtype=np.float64) > _THINNEST * len(rows) + 1_000_000:
        raise TraceError(
            f"{path}, lines {rows.lines[0]} to {rows.lines[-1]}: {len(rows)} rows for {shape[0]} tokens x "
            f"{shape[1]} layers x {shape[2]} slots: nearly all of them are missing"
        )
    place = np.ravel_multi_index((token, layer, columns["slot"]), shape)
    _, first = np.unique(place, return_index=True)
    if len(first) != len(place):
        index = int(np.setdiff1d(np.arange(len(place)), first)[0])
        raise TraceError(
            f"{path}, line {rows.lines[index]}: layer {columns['layer'][index]}, slot {columns['slot'][index]} "
            "of this token was given before"
        )
    experts = np.full(shape, _ABSENT)
    experts.flat[place] = columns["expert"]
    weights = None
    if "weight" in columns:
        weights = np.zeros(shape, np.float16)
        weights.flat[place] = columns["weight"]
    tokens = {name: columns[name][starts] for name in ("step", "request", "position", "phase")}
    return _Block(tokens, layers, experts, weights)


def _join(path: Path, kind: str, blocks: list[_Block], labels: Labels) -> Trace:
    """One trace of all blocks; each is dropped once it has been copied."""
    layers = np.unique(np.concatenate([block.layers for block in blocks]))
    top_k = max(block.experts.shape[2] for block in blocks)
    largest = max(int(block.experts[block.experts != _ABSENT].max()) for block in blocks)
    metadata = labels.metadata(path, kind, layers.tolist(), top_k, largest)
    dtype = id_dtype(metadata.experts)
    count = sum(len(block.experts) for block in blocks)
    experts = np.full((count, len(layers), top_k), np.iinfo(dtype).max, dtype)
    weights = None if blocks[0].weights is None else np.zeros(experts.shape, np.float16)
    tokens = {name: np.concatenate([block.tokens[name] for block in blocks]) for name in blocks[0].tokens}
    end = count
    while blocks:
        block = blocks.pop()
        here = slice(end - len(block.experts), end)
        columns, slots = np.searchsorted(layers, block.layers), block.experts.shape[2]
        ids = np.where(block.experts == _ABSENT, np.iinfo(dtype).max, block.experts)
        experts[here, columns, :slots] = ids
        if weights is not None and block.weights is not None:
            weights[here, columns, :slots] = block.weights
        end = here.start
    return Trace(
        experts=experts, weights=weights, metadata=metadata, step=tokens["step"].astype(np.uint32),
        request=tokens["request"].astype(np.uint32), position=tokens["position"].astype(np.uint32),
        phase=tokens["phase"].astype(np.uint8),
    )
