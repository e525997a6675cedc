"""Which rules exist. One decorator registers a rule under its role; a duplicate name raises.

Rules of other packages arrive through the entry-point group `moesim.policies`: each entry names a module
whose import registers its rules.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar, get_args

from moesim.errors import ConfigError, nearest
from moesim.policies.own_rule import is_own_rule, own_rule, role_of

ROLES = ("route", "prefetch", "on_miss", "evict", "budget", "draft")
Rule = TypeVar("Rule", bound=type)
_rules: dict[str, dict[str, type]] = {role: {} for role in ROLES}
_loaded = False


def register(role: str, name: str) -> Callable[[Rule], Rule]:
    """Register a rule class: `@register("evict", "lru")`. Raises ValueError if the name is taken."""

    def keep(rule: Rule) -> Rule:
        if name in _rules[role]:
            raise ValueError(f"{role} rule {name!r} is registered twice: {_rules[role][name]} and {rule}")
        _rules[role][name] = rule
        return rule

    return keep


def rules(role: str) -> Mapping[str, type]:
    """All rules of a role by name: the built-in ones and those of installed packages."""
    global _loaded
    if not _loaded:
        _loaded = True
        for each in ROLES:
            package = import_module(f"moesim.policies.{each}")
            for module in iter_modules(package.__path__):
                import_module(f"{package.__name__}.{module.name}")
        for entry in entry_points(group="moesim.policies"):
            entry.load()
    return _rules[role]


def rule_class(role: str, name: str) -> type:
    """The class of a rule. Raises ConfigError with the nearest known names."""
    if is_own_rule(name):
        rule = own_rule(name)
        if role_of(rule) != role:
            raise ConfigError(f"policy: {name} is a rule of the role {role_of(rule)}, not {role}")
        return rule
    known = rules(role)
    if name not in known:
        raise ConfigError(f"policy: unknown {role} rule {name!r}: {nearest(name, known)}")
    return known[name]


def parameters(rule: type) -> Mapping[str, Any]:
    """The parameters of a rule with their defaults."""
    signature = inspect.signature(rule)
    return {name: parameter.default for name, parameter in signature.parameters.items()}


def optional_type(rule: type, name: str) -> type:
    """What a parameter is whose default is None, such as `int` of `int | None`; text where it does not say."""
    annotation = inspect.signature(rule, eval_str=True).parameters[name].annotation
    return next((each for each in get_args(annotation) if each is not type(None)), str)
