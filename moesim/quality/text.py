"""Held-out text as blocks of tokens of one length.

Plain text is one document. A line of JSONL is one: an object with `tokens`, a list of ids, or with `text`; or a bare
string. A NumPy array (.npy) is token ids. Documents are joined, the model's end-of-text token between them where it has
one, and cut into blocks; what is left at the end is too short to be one and is not read.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError


@dataclass(frozen=True, eq=False)
class Blocks:
    """Token ids [blocks, tokens]; `sha256` is that of the ids read."""

    tokens: NDArray[np.int64]
    source: str
    sha256: str


def read_blocks(
    path: Path, tokenizer: Callable[[], Any], vocabulary: int, *, block_tokens: int, most_tokens: int | None
) -> Blocks:
    """The blocks of a file; `most_tokens` bounds their tokens in all. `tokenizer()` is called for text alone.

    Raises:
        InputError: it cannot be read, a line is none of the above, an id is not the model's, or it fills no block.
    """
    documents, separator = _documents(path, tokenizer)
    joined: list[int] = []
    for document in documents:
        joined += [*separator, *document] if joined else document
        if most_tokens is not None and len(joined) >= most_tokens:
            joined = joined[:most_tokens]
            break
    count = len(joined) // block_tokens
    if count < 1:
        raise InputError(f"{path}: {len(joined)} tokens: one block has {block_tokens}")
    ids = np.array(joined[: count * block_tokens], np.int64)
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise InputError(f"{path}: ids from {ids.min()} to {ids.max()}: the model's vocabulary has {vocabulary}")
    return Blocks(ids.reshape(count, block_tokens), path.name, hashlib.sha256(ids.tobytes()).hexdigest())


def _documents(path: Path, tokenizer: Callable[[], Any]) -> tuple[Iterator[list[int]], list[int]]:
    """Token ids, document after document, and what stands between two of them."""
    if path.suffix == ".npy":
        return iter([_array(path)]), []
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: text is UTF-8") from None
    found: list[str | list[int]] = list(_lines(path, content)) if path.suffix == ".jsonl" else [content]
    if all(isinstance(each, list) for each in found):
        return (each for each in found if isinstance(each, list)), []
    made = tokenizer()
    separator = [] if made.eos_token_id is None else [int(made.eos_token_id)]

    def ids() -> Iterator[list[int]]:
        for each in found:
            # A text longer than the model's context is cut into blocks: the tokenizer need not warn.
            yield made(each, add_special_tokens=False, verbose=False)["input_ids"] if isinstance(each, str) else each

    return ids(), separator


def _array(path: Path) -> list[int]:
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a NumPy array: {error}") from None
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{path}: array of type {ids.dtype} and shape {ids.shape}: token ids are one row of integers")
    found: list[int] = ids.tolist()
    return found


def _lines(path: Path, content: str) -> Iterator[str | list[int]]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}: line {number} is not JSON") from None
        given: Any = value.get("tokens", value.get("text")) if isinstance(value, dict) else value
        if not (isinstance(given, str) or _is_ids(given)):
            raise InputError(f'{path}: line {number}: expected {{"text": ...}}, {{"tokens": [ids]}} or a string')
        yield given


def _is_ids(given: Any) -> bool:
    return isinstance(given, Sequence) and all(type(each) is int and abs(each) < 1 << 62 for each in given)
