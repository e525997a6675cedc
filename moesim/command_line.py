"""What every command line here has in common: examples in its help, and errors that are one line."""

import sys
from typing import NoReturn

import typer

from moesim.errors import ConfigError, InputError


def examples(*lines: str) -> str:
    """An epilog of example commands."""
    # Brackets are markup to what prints the help; a policy's are meant as they stand.
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)]).replace("[", r"\[")


def overrides(settings: list[str]) -> dict[str, float]:
    """Figures of the hardware that `--set` gives. Raises ConfigError for what is no number."""
    values = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            values[name.strip().removeprefix("hardware.")] = float(value)
        except ValueError:
            raise ConfigError(f"--set {setting}: expected FIGURE=NUMBER, such as link_bytes_per_s=50e9") from None
    return values


def run_app(app: typer.Typer, interrupted: str) -> NoReturn:
    """Run a command and exit. What a user can mend is one line and exit code 2; Ctrl-C says `interrupted`, code 130."""
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 2)
    except Exception as error:
        # What typer finds wrong with the arguments; it would draw a box around it.
        if not hasattr(error, "format_message"):
            raise
        if not error.format_message():  # a command was named without arguments: help is the answer
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _fail(" ".join(error.format_message().split()), 2)
    if status == 130:
        _fail(interrupted, 130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(status)
