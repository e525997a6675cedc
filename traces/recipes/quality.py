"""The stage `quality`: what lossy execution costs the trained model, on held-out text, with the weights still at hand.

It takes what the stage `predictors` has fitted and leaves `NAME.quality.json` (`moesim quality`), which `write` puts
beside the trace. The held-out text is blocks interleaved across kinds; a block that shares a stretch with what was
fitted on, such as a licence, is left out.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.atomic_write import atomic_write
from moesim.errors import InputError
from moesim.progress import shown_progress
from moesim.quality.run import Request, evaluate
from moesim.quality.stored import SUFFIX, as_json
from moesim.record.predictors.fitted import Fitted
from moesim.record.predictors.token_windows import refuse_overlap
from traces.recipes.corpus import KINDS, Corpus
from traces.recipes.shapes import Shape
from traces.recipes.write import CHECKPOINT

# Short blocks side by side: a cached mode takes one pass per decoded token, however many lanes there are.
BLOCK_TOKENS, PROMPT_TOKENS, WARMUP_TOKENS, LANES = 128, 32, 32, 64
FITTED = ("vectors", "estimator")
CACHE_FRACTIONS = (0.25, 0.5)


def quality_stage(shape: Shape, corpus: Corpus, folder: Path, device: str, tokens: int) -> None:
    """Measure every mode on `tokens` held-out tokens with the weights and the predictors in `folder`.

    Raises:
        InputError: the stages before it have left nothing, or too little text is left.
    """
    fitted = [folder / f"{name}.safetensors" for name in FITTED]
    kept = [Fitted.load(path).windows for path in fitted]
    text = folder / "held-out.jsonl"
    blocks = islice((block for block in _blocks(corpus) if _unseen(block, kept)), tokens // BLOCK_TOKENS)
    text.write_text("".join(json.dumps({"tokens": block}) + "\n" for block in blocks))
    request = Request(
        model=str(folder / CHECKPOINT), text=text, fitted=fitted, tokens=tokens, block_tokens=BLOCK_TOKENS,
        prompt_tokens=PROMPT_TOKENS, warmup_tokens=WARMUP_TOKENS, lanes=LANES, device=device, dtype="float32",
        cache_fractions=CACHE_FRACTIONS,
    )
    with shown_progress("passes") as progress:
        found = evaluate(request, progress)
    with atomic_write(folder / f"{shape.name}{SUFFIX}") as file:
        file.write(as_json(found).encode())


def _blocks(corpus: Corpus) -> Iterator[Sequence[int]]:
    """The first block of every kind, then the second of every kind, as far as a kind goes."""
    longest = max(len(array) for array in corpus.held_out.values())
    for start in range(0, longest, BLOCK_TOKENS):
        for kind in KINDS:
            block = corpus.held_out[kind][start : start + BLOCK_TOKENS].tolist()
            if len(block) == BLOCK_TOKENS:
                yield block


def _unseen(block: Sequence[int], kept: Sequence[NDArray[np.uint64]]) -> bool:
    """Whether nothing was fitted on any stretch of the block."""
    try:
        for windows in kept:
            refuse_overlap(windows, [block], "the fitted text")
    except InputError:
        return False
    return True
