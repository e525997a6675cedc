"""YAML that a user wrote, read safely; whatever is wrong with it becomes one line: file, line, key, value and rule."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from moesim.errors import ConfigError, nearest

Model = TypeVar("Model", bound=BaseModel)

MOST_VALUES = 100_000
"""Aliases let a short file stand for billions of values; nothing that moesim reads has so many."""


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that is given twice is an error, where PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: unreadable, not YAML, not a mapping, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    try:
        content = yaml.load(text, _Loader)  # noqa: S506, a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    if _values_spelt_out(content) > MOST_VALUES:
        raise ConfigError(f"{path}: more than {MOST_VALUES:,} values, aliases written out")
    return content


def _values_spelt_out(content: Any) -> int:
    """How many values there are with every alias written out; stops counting soon after MOST_VALUES."""
    left, counted = [content], 0
    while left and counted <= MOST_VALUES:
        value = left.pop()
        counted += 1
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            left += value
    return counted


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
    """One thing that pydantic found, in one line: an unknown key before the first other, which it often explains."""
    errors = error.errors(include_url=False)
    found = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = ".".join(map(str, found["loc"])) or "the file"
    where = f"{path}{line_of(path, *found['loc'])}"
    if found["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}: {nearest(str(found['loc'][-1]), _keys(model, found['loc']))}"
    if found["type"] == "missing":
        return f"{where}: {key} is missing"
    value = repr(found["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{where}: {key} = {shown}: {found['msg'].removeprefix('Value error, ')}"


def _keys(model: type[BaseModel], place: Sequence[str | int]) -> Iterable[str]:
    """The keys known where `place` leads to: those of a model somewhere in the types of the fields on the way."""
    for key in place[:-1]:
        field = model.model_fields.get(str(key))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def line_of(path: Path, *keys: str | int) -> str:
    """`:LINE` of what the keys and list positions lead to, or of as much of the way as exists; else nothing."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return ""
    line = ""
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            entry = next(((name, value) for name, value in node.value if name.value == str(key)), None)
            if entry is None:
                break
            named, node = entry
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            named = node = node.value[key]
        else:
            break
        line = f":{named.start_mark.line + 1}"
    return line
