"""NumPy archives of decode routing, as GPT-OSS-MoE-ExpertFingerprinting publishes them (Apache-2.0).

`NAME_experts.npz` holds `experts` [T, L, K] and `offsets` [sequences + 1], the rows at which the sequences start.
Beside it, and used where present: `NAME_probs_f16.npz` with the gate weights `probs` [T, L, K], and `sequences.json`
with one object per sequence: `T` (its rows), `category`, `first_pos` (position of its first row) and the prompt's
length as `n_full` - `n_gen`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError
from moesim.trace import DECODE, Request, Trace, id_dtype
from moesim.trace_import.labels import Labels
from moesim.trace_import.npz_member import read_member

_SUFFIX = "_experts.npz"
_KNOWN = {
    "recorder": "GPT-OSS-MoE-ExpertFingerprinting",
    "recorder_version": "72b368f",
    "licence": "Apache-2.0",
    "source": "https://github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
}
_PUBLISHED = {"model": "gpt-oss-20b", "experts": 32, "decoding": "greedy"}


def read(path: Path, labels: Labels) -> Trace:
    """Read an experts archive and what lies beside it.

    Raises:
        TraceError: a damaged archive, an array missing or of another type or shape, sequences that do not add up.
    """
    experts = read_member(path, "experts", "iu", 3)
    offsets = read_member(path, "offsets", "iu", 1)
    tokens, layers, top_k = experts.shape
    if experts.size == 0 or (lowest := int(experts.min())) < 0:
        what = f"shape {experts.shape}" if experts.size == 0 else f"id {lowest}"
        raise TraceError(f"{path}: experts has {what}: it holds ids from 0 for [tokens, layers, top-k]")
    starts = offsets.astype(np.int64)
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != tokens or (np.diff(starts) <= 0).any():
        raise TraceError(f"{path}: offsets ascend from 0 to the {tokens} rows of experts, not {_short(starts)}")
    weights = None
    probabilities = path.with_name(path.name.removesuffix(_SUFFIX) + "_probs_f16.npz")
    if path.name.endswith(_SUFFIX) and probabilities.exists():
        weights = read_member(probabilities, "probs", "f", 3).astype(np.float16)
        if weights.shape != experts.shape:
            raise TraceError(f"{probabilities}: probs has shape {weights.shape}: experts has {experts.shape}")
    request = np.repeat(np.arange(len(starts) - 1, dtype=np.uint32), np.diff(starts))
    row = np.arange(tokens, dtype=np.uint32)
    first_position, requests = _sequences(path.with_name("sequences.json"), np.diff(starts))
    known: dict[str, Any] = {**_KNOWN, **_PUBLISHED} if path.name.startswith("gptoss20b_decode") else {}
    metadata = labels.metadata(
        path, "npz", range(layers), top_k, int(experts.max()), requests, "Decode only: prompts were not recorded.",
        **known,
    )
    return Trace(
        experts=experts.astype(id_dtype(metadata.experts)), weights=weights, step=row, request=request,
        position=row - starts[request].astype(np.uint32) + first_position[request],
        phase=np.full(tokens, DECODE, np.uint8), metadata=metadata,
    )


def _sequences(path: Path, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint32], list[Request]]:
    """First position of every sequence and what is known about it; zeros and nothing without the file."""
    if not path.exists():
        return np.zeros(len(rows), np.uint32), []
    try:
        listed = json.loads(path.read_bytes())
        first = np.array([each["first_pos"] for each in listed], np.uint32)
        lengths = [int(each["T"]) for each in listed]
        requests = [
            Request(request=index, kind=str(each["category"]), prompt_tokens=each["n_full"] - each["n_gen"])
            for index, each in enumerate(listed)
        ]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TraceError(
            f"{path}: {reason}: it is an array of objects with T, category, first_pos, n_full and n_gen"
        ) from None
    if lengths != rows.tolist():
        raise TraceError(
            f"{path}: T of its {len(lengths)} sequences is {_short(lengths)}: offsets give {len(rows)} sequences "
            f"of {_short(rows)} rows"
        )
    return first, requests


def _short(numbers: Any) -> str:
    values = list(map(int, numbers))
    return str(values) if len(values) <= 6 else f"[{', '.join(map(str, values[:5]))}, ...]"
