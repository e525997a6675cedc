"""What a policy does, in words: its rules with their parameters, what its source leaves open, and where it is from."""

import inspect
from dataclasses import dataclass
from typing import Any

from moesim.policies.composition import Policy, parse
from moesim.policies.registry import ROLES, parameters, rule_class


@dataclass(frozen=True)
class RuleText:
    """One rule of a policy."""

    role: str
    name: str
    parameters: dict[str, Any]
    """Each with its value in this policy."""
    given: list[str]
    """Those that the policy sets away from the rule's default."""
    text: str
    """How the rule says it works: the head of its file."""


@dataclass(frozen=True)
class PolicyText:
    """A whole policy."""

    name: str
    summary: str
    source: str
    lossless: bool
    bound: bool
    reads_ahead: bool
    needs_scores: bool
    cache: str
    open_rules: list[str]
    rules: list[RuleText]


def describe(text: str) -> PolicyText:
    """Describe a policy, with whatever parameters it is given. Raises ConfigError like `parse`."""
    policy = parse(text)
    spec = policy.spec
    return PolicyText(
        name=policy.name, summary=spec.summary, source=spec.source, lossless=policy.lossless, bound=spec.bound,
        reads_ahead=policy.reads_ahead, needs_scores=policy.route.looks_at_cache, cache=spec.cache,
        open_rules=list(spec.open_rules),
        rules=[_rule(policy, role) for role in ROLES if role != "draft" or policy.draft.longest],
    )


def _rule(policy: Policy, role: str) -> RuleText:
    name, given = policy.rules[role]
    rule = rule_class(role, name)
    defaults = dict(parameters(rule))
    module = inspect.getmodule(rule)
    text = inspect.cleandoc((module.__doc__ if module is not None else None) or rule.__doc__ or "")
    return RuleText(
        role, name, {**defaults, **given}, [key for key, value in given.items() if value != defaults[key]], text
    )
