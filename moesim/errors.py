"""Errors that a user can mend. Each is one line that names the file, the value and the rule it breaks."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_MESSAGE = 1_500


class InputError(ValueError):
    """What the user gave cannot be used. The command line prints it and exits with code 2.

    The message is one line of bounded length, whatever the input that it quotes: what is not printable is escaped.
    """

    def __init__(self, message: str) -> None:
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message)
        if len(line) > LONGEST_MESSAGE:
            line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 3 :]}"
        super().__init__(line)


class TraceError(InputError):
    """A trace file breaks the format `moesim-trace/1`, or does not fit the model."""


class ConfigError(InputError):
    """A YAML file or a flag holds something that moesim does not know or cannot run."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps whoever mistyped `name`: the closest known names, or all of them."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(choices)
