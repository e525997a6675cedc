"""The text that a predictor is fitted on: cut into sequences of one length, shuffled, in batches."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.record.predictors.token_windows import WINDOWS_KEY, aligned_hashes, hashes_of_text, refuse_overlap
from moesim.trace import Trace


@dataclass(frozen=True, eq=False)
class FittingText:
    """Token ids in batches [sequences, tokens], and what they are of."""

    batches: list[torch.Tensor]
    source: str
    sha256: str

    @classmethod
    def of_batches(cls, batches: Sequence[torch.Tensor], source: str) -> "FittingText":
        """Text that is in batches already."""
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(batch.cpu().numpy().astype(np.int64).tobytes())
        return cls(list(batches), source, digest.hexdigest())

    @property
    def tokens(self) -> int:
        """All tokens of all batches."""
        return sum(batch.numel() for batch in self.batches)

    def windows(self) -> NDArray[np.uint64]:
        """Hashes by which this text is known again (token_windows.py)."""
        return aligned_hashes(sequence for batch in self.batches for sequence in batch.tolist())

    def split(self, share: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Batches to fit on, and the last `share` of them to validate on, at least one of each.

        Raises:
            InputError: there is one batch only.
        """
        if len(self.batches) < 2:
            raise InputError(f"{self.source}: {self.tokens:,} tokens are one batch: a validation text needs a second")
        count = min(len(self.batches) - 1, max(1, round(share * len(self.batches))))
        return self.batches[:-count], self.batches[-count:]


def text_of_tokens(
    tokens: Sequence[int] | NDArray[Any],
    source: str,
    *,
    sequence_tokens: int = 512,
    batch_sequences: int = 8,
    most_tokens: int = 0,
    seed: int = 0,
) -> FittingText:
    """Cut token ids into sequences and shuffle these by `seed`; `most_tokens` keeps that many, 0 all.

    Raises:
        InputError: fewer tokens than one sequence has.
    """
    ids = np.asarray(tokens, np.int64)
    count = len(ids) // sequence_tokens
    if count < 1:
        raise InputError(f"{source}: {len(ids)} tokens: one sequence has {sequence_tokens}")
    sequences = ids[: count * sequence_tokens].reshape(count, sequence_tokens)
    sequences = sequences[np.random.default_rng(seed).permutation(count)]
    if most_tokens:
        sequences = sequences[: max(1, most_tokens // sequence_tokens)]
    batches = [
        torch.from_numpy(sequences[start : start + batch_sequences].copy())
        for start in range(0, len(sequences), batch_sequences)
    ]
    return FittingText(batches, source, hashlib.sha256(ids.tobytes()).hexdigest())


def tokens_of_file(path: Path, tokenizer: Any, vocabulary: int) -> NDArray[np.int64]:
    """The token ids of a file: a NumPy array of ids as it is (.npy), anything else as UTF-8 text, by `tokenizer()`.

    `tokenizer` is a function that gives the model's tokenizer; it is called for text alone.

    Raises:
        InputError: it cannot be read, is not UTF-8, or holds ids that the vocabulary lacks.
    """
    try:
        if path.suffix == ".npy":
            ids = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding="utf-8")
            ids = np.array(tokenizer()(text, add_special_tokens=False)["input_ids"], np.int64)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: text is UTF-8") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a NumPy array: {error}") from None
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{path}: array of type {ids.dtype} and shape {ids.shape}: token ids are one row of integers")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise InputError(f"{path}: ids from {ids.min()} to {ids.max()}: the model's vocabulary has {vocabulary}")
    tokens: NDArray[np.int64] = ids.astype(np.int64)
    return tokens


def refuse_recorded(text: FittingText, trace: Trace) -> None:
    """Refuse to fit on text that `trace` was recorded from.

    Raises:
        InputError: they share a stretch of tokens, or the trace does not say what it was recorded from.
    """
    kept = trace.metadata.provenance.get(WINDOWS_KEY)
    if not isinstance(kept, str):
        raise InputError(
            f"{trace.label}: its provenance has no {WINDOWS_KEY}, so that its text cannot be told from another"
        )
    sequences = (sequence for batch in text.batches for sequence in batch.tolist())
    refuse_overlap(hashes_of_text(kept), sequences, f"{trace.label}, which is to be evaluated")
