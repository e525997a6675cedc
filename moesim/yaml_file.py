"""YAML that a user wrote, read safely; whatever is wrong with it becomes one line with file, key, value and rule."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from moesim.errors import ConfigError, nearest

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    return content


def read_model(path: Path, model: type[Model]) -> Model:
    """A YAML file as a pydantic model.

    Raises:
        ConfigError: as `read_yaml`, or a key or value that the model does not allow.
    """
    return check(read_yaml(path), model, path)


def check(content: dict[str, Any], model: type[Model], path: Path) -> Model:
    """A mapping that came from `path` as a pydantic model.

    Raises:
        ConfigError: the first key or value that the model does not allow.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error, model, path)) from None


def explain(error: ValidationError, model: type[BaseModel], path: Path) -> str:
    """The first thing that pydantic found, in one line."""
    found = error.errors(include_url=False)[0]
    key = ".".join(map(str, found["loc"])) or "the file"
    where = f"{path}{_line_of(path, str(found['loc'][0]) if found['loc'] else '')}"
    if found["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}: {nearest(key, model.model_fields)}"
    if found["type"] == "missing":
        return f"{where}: {key} is missing"
    value = repr(found["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{where}: {key} = {shown}: {found['msg'].removeprefix('Value error, ')}"


def _line_of(path: Path, key: str) -> str:
    """`:LINE` of a top-level key, or nothing if it cannot be found."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for number, line in enumerate(lines, start=1):
        if key and line.startswith(f"{key}:"):
            return f":{number}"
    return ""
