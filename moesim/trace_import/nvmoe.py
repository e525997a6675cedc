"""nvmoe recordings: one line per generated token, a JSON array of [layer, expert] pairs in layer order.

Recorded by nvmoe (github.com/BrianBoitano/nvmoe, MIT) inside llama.cpp. They hold the ids alone: no gate weights, no
prompts, no marks between requests. Where the requests of a published file are known, they are set here.
"""

import json
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError
from moesim.trace import DECODE, Request, Trace, id_dtype
from moesim.trace_import.labels import Labels
from moesim.trace_import.lines import read_lines

_COMMON = {
    "recorder": "nvmoe",
    "recorder_version": "f895ad3",
    "licence": "MIT",
    "source": "https://github.com/BrianBoitano/nvmoe",
}
_FOUR_PROMPTS = {"tokens": 1396, "starts": (0, 399, 798, 1197), "kinds": ("chat", "code", "story", "summarize")}
# what is known about the published files, by the beginning of their names
_PUBLISHED: dict[str, dict[str, Any]] = {
    "olmoe-all": {"model": "olmoe-1b-7b", "experts": 64, "requests": None},
    "dsv2lite-all": {"model": "deepseek-v2-lite", "experts": 64, "requests": _FOUR_PROMPTS},
    "gptoss-all": {"model": "gpt-oss-120b", "experts": 128, "requests": _FOUR_PROMPTS},
}
_NOTES = "Generated tokens only: positions count them from 0, and the prompts before them were not recorded."


def read(path: Path, labels: Labels) -> Trace:
    """Read an nvmoe file.

    Raises:
        TraceError: a line that is no array of [layer, expert] pairs, or of another shape than the first line.
    """
    layers: list[int] = []
    top_k = 0
    rows: list[NDArray[np.uint16]] = []
    for number, line in read_lines(path):
        token_layers, ids = _parse(path, number, line)
        if not rows:
            layers, top_k = token_layers, len(ids) // len(token_layers)
        if token_layers != layers or len(ids) != len(layers) * top_k:
            raise TraceError(
                f"{path}, line {number}: {len(ids)} pairs in {len(token_layers)} layers: every token has the layers "
                f"of the first line, {top_k} experts in each"
            )
        rows.append(np.array(ids, np.uint16))
    if not rows:
        raise TraceError(f"{path}: no line holds a token")
    wide = np.stack(rows).reshape(len(rows), len(layers), top_k)
    published: dict[str, Any] = next((_PUBLISHED[key] for key in _PUBLISHED if path.name.startswith(key)), {})
    known = _COMMON if published else {"recorder": "nvmoe"}
    known = {**known, **{key: published[key] for key in ("model", "experts") if key in published}}
    marks = published.get("requests")
    if marks is None or marks["tokens"] != len(rows):
        marks = {"starts": (0,), "kinds": ()}
    starts = np.array([*marks["starts"], len(rows)])
    request = np.repeat(np.arange(len(starts) - 1, dtype=np.uint32), np.diff(starts))
    row = np.arange(len(rows), dtype=np.uint32)
    metadata = labels.metadata(
        path, "nvmoe", layers, top_k, int(wide.max()),
        [Request(request=index, kind=kind) for index, kind in enumerate(marks["kinds"])],
        _NOTES if marks["kinds"] else f"{_NOTES} Requests are not marked and count as one.",
        **known,
    )
    return Trace(
        experts=wide.astype(id_dtype(metadata.experts)), weights=None, step=row, request=request,
        position=row - starts[request].astype(np.uint32), phase=np.full(len(rows), DECODE, np.uint8),
        metadata=metadata,
    )


def _parse(path: Path, number: int, line: bytes) -> tuple[list[int], list[int]]:
    """The layers and the expert ids of one line, K ids per layer."""
    try:
        pairs = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(pairs, list) or not pairs:
        raise TraceError(f"{path}, line {number}: an array of [layer, expert] pairs belongs here")
    for pair in pairs:
        if not isinstance(pair, list) or [type(n) for n in pair] != [int, int] or not all(0 <= n < 65535 for n in pair):
            raise TraceError(f"{path}, line {number}: {str(pair)[:40]}: a pair is [layer, expert], both 0 to 65534")
    for before, pair in pairwise(pairs):
        if pair[0] < before[0]:
            raise TraceError(f"{path}, line {number}: {pair} after {before}: pairs come in the order of the layers")
    sizes = {layer: len(list(group)) for layer, group in groupby(pair[0] for pair in pairs)}
    if len(set(sizes.values())) != 1:
        raise TraceError(f"{path}, line {number}: {min(sizes.values())} to {max(sizes.values())} experts per layer: "
                         "every layer has as many")
    return list(sizes), [pair[1] for pair in pairs]
