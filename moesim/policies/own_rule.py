"""A rule in a single file of the user's own: `mine.py:MyEvict`, wherever a policy or a rule can be named.

The file is run as Python code when it is named, with the rights of whoever names it. Its rule needs no registration.
"""

import inspect
import sys
import traceback
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from moesim.catalogue import is_file
from moesim.errors import ConfigError, nearest
from moesim.policies.roles import Budget, Draft, Evict, OnMiss, Prefetch, Route

BASES: dict[str, type] = {
    "route": Route, "prefetch": Prefetch, "on_miss": OnMiss, "evict": Evict, "budget": Budget, "draft": Draft,
}


def is_own_rule(name: str) -> bool:
    """Whether a name means a class in a file, as `mine.py:MyEvict` does."""
    return ".py:" in name


def own_rule(name: str) -> type:
    """The class that `FILE.py:CLASS` names, a subclass of one of the roles.

    Raises:
        ConfigError: no such file or class, code that cannot be run, or a class that is not a whole rule.
    """
    file, _, wanted = name.rpartition(":")
    module = _module(file)
    rules = {
        each: rule
        for each, rule in vars(module).items()
        if isinstance(rule, type) and rule.__module__ == module.__name__ and _role_or_none(rule)
    }
    if wanted not in rules:
        bases = ", ".join(base.__name__ for base in BASES.values())
        hint = nearest(wanted, rules) if rules else f"it has no subclass of {bases}"
        raise ConfigError(f"{file}: no rule {wanted!r}: {hint}")
    rule = rules[wanted]
    missing = sorted(getattr(rule, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"{file}: {wanted} is not a whole rule: it lacks {', '.join(missing)}")
    for parameter in inspect.signature(rule).parameters.values():
        if parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{file}: {wanted}: parameter {parameter.name!r} needs a default")
    return rule


def role_of(rule: type) -> str:
    """The role that a rule plays."""
    role = _role_or_none(rule)
    assert role is not None, "own_rule gives nothing else"
    return role


def _role_or_none(rule: type) -> str | None:
    return next((role for role, base in BASES.items() if issubclass(rule, base)), None)


@lru_cache(maxsize=64)
def _module(file: str) -> ModuleType:
    """Run a file once per process, so that its classes stay the same ones."""
    path = Path(file)
    if not is_file(path):
        raise ConfigError(f"{file}: no such file")
    name = f"own_rule_of_{path.stem}_{abs(hash(path.resolve()))}"
    spec = spec_from_file_location(name, path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = file if line is None else f"{file}:{line}"
        raise ConfigError(f"{where}: {type(error).__name__}: {getattr(error, 'msg', error)}") from None
    return module
