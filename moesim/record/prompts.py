"""What to record: a file of prompts, read and made into token ids.

    a text file     one prompt a line, blank lines skipped
    a JSONL file    an object a line: {"prompt": "…", "kind": "code"}, {"prompt": "…", "continuation": "…"} to have
                    the continuation fed to the model as its own words, or {"tokens": [5, 17, …], "prompt_tokens": 32}
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moesim.errors import InputError, nearest
from moesim.record.decoding import TokenSequence


class Prompt(BaseModel):
    """One request before its text is made into tokens. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str | None = None
    continuation: str = ""
    """What follows the prompt, given to the model as its own words."""
    tokens: list[int] | None = None
    """The same as token ids, prompt and continuation in one."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """How many of `tokens` are the prompt; all of them if not said."""
    kind: str = "text"

    @model_validator(mode="after")
    def _one_of_two(self) -> "Prompt":
        if (self.prompt is None) == (self.tokens is None):
            raise ValueError("it has either prompt or tokens")
        if self.tokens is None and self.prompt_tokens is not None:
            raise ValueError("prompt_tokens goes with tokens")
        if self.tokens is not None and self.continuation:
            raise ValueError("continuation goes with prompt")
        return self


@dataclass(frozen=True)
class Prompts:
    """Prompts, and the name and hash of where they are from."""

    prompts: Sequence[Prompt]
    source: str
    sha256: str


def read_prompts(path: Path) -> Prompts:
    """Read a file of prompts: JSONL if it is called so, else text.

    Raises:
        InputError: it cannot be read, is not UTF-8, holds no prompt, or a line of it breaks a rule.
    """
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: prompts are UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    parse: Callable[[str], Prompt] = _of_json if path.suffix in (".jsonl", ".json") else _of_text
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(parse(line))
            except ValueError as error:
                raise InputError(f"{path}: line {number}: {error}") from None
    if not prompts:
        raise InputError(f"{path}: it holds no prompt")
    return Prompts(prompts, path.name, hashlib.sha256(content).hexdigest())


def _of_text(line: str) -> Prompt:
    return Prompt(prompt=line)


def _of_json(line: str) -> Prompt:
    try:
        return Prompt.model_validate_json(line)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        field = ".".join(map(str, found["loc"]))
        if found["type"] == "extra_forbidden":
            raise ValueError(f"unknown key {field!r}: {nearest(field, Prompt.model_fields)}") from None
        message = found["msg"].removeprefix("Value error, ")
        raise ValueError(f"{field}: {message}" if field else message) from None


def given_prompts(prompts: Sequence[Any]) -> Prompts:
    """Prompts out of Python: texts, sequences of token ids, `Prompt`s.

    Raises:
        InputError: one of them is something else.
    """
    made = []
    for number, each in enumerate(prompts):
        if isinstance(each, Prompt):
            made.append(each)
        elif isinstance(each, str):
            made.append(Prompt(prompt=each))
        else:
            try:
                made.append(Prompt(tokens=[int(token) for token in each]))
            except (TypeError, ValueError):
                raise InputError(f"prompt {number}: a {type(each).__name__} is neither text nor token ids") from None
    text = "\n".join(prompt.model_dump_json() for prompt in made)
    return Prompts(made, "given in Python", hashlib.sha256(text.encode()).hexdigest())


def token_sequences(
    prompts: Prompts, tokenizer: Callable[[], Any], vocabulary: int, most_tokens: int | None, new_tokens: int
) -> list[TokenSequence]:
    """The prompts as token ids. `tokenizer` is a function that gives the tokenizer; it is called for text alone.

    `most_tokens` is the context that the model was made for, `new_tokens` what each request may add to what it gives.

    Raises:
        InputError: a prompt is empty, has ids that the vocabulary lacks, or goes beyond the model's context.
    """
    words = tokenizer() if any(each.prompt is not None for each in prompts.prompts) else None
    sequences = []
    for number, each in enumerate(prompts.prompts):
        where = f"{prompts.source}: prompt {number}"
        if each.tokens is not None:
            tokens, prompt = list(each.tokens), each.prompt_tokens or len(each.tokens)
        else:
            assert words is not None
            tokens = list(words(each.prompt)["input_ids"])
            prompt = len(tokens)
            if each.continuation:
                tokens += list(words(each.continuation, add_special_tokens=False)["input_ids"])
        if not 1 <= prompt <= len(tokens):
            raise InputError(f"{where}: {prompt} prompt tokens of {len(tokens)}: at least 1, at most all of them")
        wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InputError(f"{where}: token id {wrong}: the model's vocabulary has {vocabulary}")
        if most_tokens is not None and len(tokens) + max(0, new_tokens - 1) > most_tokens:
            raise InputError(
                f"{where}: {len(tokens)} tokens and {new_tokens} new ones, the last not run: "
                f"the model's context is {most_tokens}"
            )
        sequences.append(TokenSequence(each.kind, tokens, prompt))
    return sequences
