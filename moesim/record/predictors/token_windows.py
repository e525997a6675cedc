"""Hashes of stretches of tokens, by which a text that was fitted on is known again.

One text is cut into windows of 32 tokens, one beside the other, and their hashes are kept; of the other text every
window of 32 tokens is looked up, at every place. So a stretch of 63 tokens that lies within a sequence of both is
always found, wherever it begins, and a stretch shorter than 32 tokens never counts.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

WINDOW_TOKENS: Final = 32
WINDOWS_KEY: Final = "token_windows"
"""Where a trace's provenance keeps the hashes of the tokens that it was recorded from, as `text_of_hashes`."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def aligned_hashes(sequences: Iterable[Sequence[int]]) -> NDArray[np.uint64]:
    """The hashes to keep: of consecutive windows that do not overlap, sorted, each once."""
    hashes = [_hashes(sequence)[::WINDOW_TOKENS] for sequence in sequences]
    return np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)


def refuse_overlap(kept: NDArray[np.uint64], sequences: Iterable[Sequence[int]], what: str) -> None:
    """Check that no window of `sequences` is among the hashes `kept` of another text.

    Raises:
        InputError: the first that is, with the number of its sequence, its place, and `what`, the kept text.
    """
    for number, sequence in enumerate(sequences):
        common = np.flatnonzero(np.isin(_hashes(sequence), kept))
        if common.size:
            raise InputError(
                f"sequence {number}: its tokens {common[0]} to {common[0] + WINDOW_TOKENS - 1} are part of {what}: "
                "what is evaluated must not have been fitted on"
            )


def text_of_hashes(hashes: NDArray[np.uint64]) -> str:
    """Hashes as text, 16 hexadecimal digits each: what fits into a trace's metadata."""
    return hashes.astype(">u8").tobytes().hex()


def hashes_of_text(text: str) -> NDArray[np.uint64]:
    """What `text_of_hashes` gave."""
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)


def _hashes(sequence: Sequence[int]) -> NDArray[np.uint64]:
    """The hash of every window, by the place of its first token: a polynomial in mixed token ids, modulo 2^64."""
    tokens = np.asarray(sequence, np.uint64)
    count = len(tokens) - WINDOW_TOKENS + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    mixed = (tokens + np.uint64(1)) * _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    found = np.zeros(count, np.uint64)
    for place in range(WINDOW_TOKENS):
        found = found * _MULTIPLIER + mixed[place : place + count]
        found ^= found >> np.uint64(32)
    return found
