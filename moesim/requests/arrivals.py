"""When requests arrive: a Poisson process from a seed, or instants from a file.

A file is CSV with a header, or one JSON object a line (.jsonl). `arrival_s` counts from the start of the run and never
falls; `prompt_tokens` and `output_tokens` are optional and cut the recorded request that is replayed.

    arrival_s,prompt_tokens,output_tokens
    0.0,32,20
    0.25,16,
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, log1p
from pathlib import Path
from random import Random
from typing import Any

from moesim.errors import ConfigError

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
MOST_SECONDS = 1e9
"""An integer of 64 bits holds nine times as many nanoseconds."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes, and how much of a recorded request it replays; None takes all of it."""

    arrival_ns: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def poisson(per_s: float, count: int, seed: int) -> list[Arrival]:
    """`count` arrivals whose gaps are exponential with mean 1 / `per_s`; the first comes after a gap, too.

    Raises:
        ConfigError: the last would come too late for a clock of 64 bits.
    """
    uniform, seconds = Random(seed), 0.0
    arrivals = []
    for _ in range(count):
        seconds -= log1p(-uniform.random()) / per_s
        if seconds > MOST_SECONDS:
            raise ConfigError(f"arrivals_per_s = {per_s:g}: {count} requests take more than {MOST_SECONDS:g} s to come")
        arrivals.append(Arrival(round(seconds * 1e9)))
    return arrivals


def read_arrivals(path: Path) -> list[Arrival]:
    """The arrivals of a file, in its order.

    Raises:
        ConfigError: unreadable, no arrivals, an unknown column, or a value that its column cannot have.
    """
    arrivals: list[Arrival] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, record in _json_lines(path, file) if path.suffix == ".jsonl" else _csv(path, file):
                arrivals.append(_arrival(f"{path}:{line}", record))
                if len(arrivals) > 1 and arrivals[-1].arrival_ns < arrivals[-2].arrival_ns:
                    raise ConfigError(
                        f"{path}:{line}: arrival_s = {record['arrival_s']}: earlier than the request before it"
                    )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV: {error}") from None
    if not arrivals:
        raise ConfigError(f"{path}: no arrivals: expected one request a line")
    return arrivals


def _csv(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, restkey="a value without a column")
    if "arrival_s" not in (reader.fieldnames or ()):
        raise ConfigError(f"{path}:1: the header has no arrival_s: expected {', '.join(COLUMNS)}")
    for record in reader:
        yield reader.line_num, {name: value for name, value in record.items() if value not in ("", None)}


def _json_lines(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{path}:{number}: expected a JSON object such as {{\"arrival_s\": 0.25}}")
        yield number, {name: value for name, value in record.items() if value is not None}


def _arrival(where: str, record: dict[str, Any]) -> Arrival:
    for name in record:
        if name not in COLUMNS:
            raise ConfigError(f"{where}: unknown column {name!r}: known: {', '.join(COLUMNS)}")
    try:
        seconds = float(record["arrival_s"])
    except KeyError:
        raise ConfigError(f"{where}: arrival_s is missing") from None
    except (TypeError, ValueError):
        seconds = -1.0
    if not (isfinite(seconds) and 0 <= seconds <= MOST_SECONDS):
        raise ConfigError(f"{where}: arrival_s = {record['arrival_s']}: expected seconds, 0 to {MOST_SECONDS:.0e}")
    return Arrival(
        round(seconds * 1e9),
        *(_tokens(where, name, record[name]) if name in record else None for name in COLUMNS[1:]),
    )


def _tokens(where: str, name: str, value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ConfigError(f"{where}: {name} = {value}: expected a whole number, 1 or more")
    return int(text)
