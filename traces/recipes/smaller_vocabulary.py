"""A corpus in fewer tokens of vocabulary: the first merges of its BPE, for a model whose weights must stay small.

A BPE merges in the order in which it learned to, so its first merges are a BPE of their own, and every token of the
large vocabulary is one sequence of tokens of the small one: what its merges put together, taken apart again. So the
arrays are converted by a table, without the text that they came from.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.recipes.corpus import HELD_OUT_TOKENS_PER_KIND, REQUEST_TOKENS, TRAIN_TOKENS_PER_KIND, Corpus


def shrink(corpus_folder: Path, folder: Path, vocabulary: int) -> None:
    """Write the corpus of `corpus_folder` into `folder` with the first `vocabulary` entries of its BPE.

    The number of tokens per kind is bounded as in the corpus itself, so less text is kept of the kinds that are cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = json.loads((corpus_folder / "tokenizer.json").read_text())
    pieces = decompositions(tokenizer["model"], vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(truncated(tokenizer, vocabulary), ensure_ascii=False))
    given = Corpus.load(corpus_folder)
    counts: dict[str, dict[str, int]] = {}
    for side, arrays, most in [
        ("train", given.train, TRAIN_TOKENS_PER_KIND),
        ("held-out", given.held_out, HELD_OUT_TOKENS_PER_KIND),
    ]:
        for kind, array in arrays.items():
            tokens = converted(array, pieces)[:most]
            tokens.tofile(folder / f"{side}.{kind}.u16")
            counts.setdefault(kind, {})[side] = len(tokens)
    requests = {
        kind: [
            {**each, "tokens": converted(np.array(each["tokens"]), pieces)[:REQUEST_TOKENS].tolist()} for each in found
        ]
        for kind, found in given.requests.items()
    }
    (folder / "requests.json").write_text(json.dumps(requests))
    description = {**given.description, "vocabulary": vocabulary, "tokens": counts}
    (folder / "corpus.json").write_text(json.dumps(description, indent=1))


def decompositions(model: dict[str, Any], vocabulary: int) -> list[list[int]]:
    """For every id of a BPE (the `model` of a tokenizer.json), the ids below `vocabulary` that it is made of."""
    ids: dict[str, int] = model["vocab"]
    pieces: list[list[int]] = [[token] for token in range(len(ids))]
    for left, right in model["merges"]:
        merged = ids[left + right]
        if merged >= vocabulary:
            pieces[merged] = pieces[ids[left]] + pieces[ids[right]]
    return pieces


def truncated(tokenizer: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The tokenizer.json of the BPE that knows only the first `vocabulary` entries."""
    model = tokenizer["model"]
    kept = {text: token for text, token in model["vocab"].items() if token < vocabulary}
    merges = [[left, right] for left, right in model["merges"] if left + right in kept]
    return {**tokenizer, "model": {**model, "vocab": kept, "merges": merges}}


def converted(array: NDArray[Any], pieces: list[list[int]]) -> NDArray[np.uint16]:
    """Token ids of the large vocabulary, each replaced by its pieces."""
    lengths = np.array([len(each) for each in pieces])
    flat = np.concatenate([np.array(each, dtype="<u2") for each in pieces])
    starts = np.cumsum(lengths) - lengths
    counts = lengths[array]
    ends = np.cumsum(counts)
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return flat[np.repeat(starts[array], counts) + within]
