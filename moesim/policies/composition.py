"""A named policy is a composition of rules, written in configs/policies/NAME.yaml or on the command line.

    lru                                      a name
    least-stale[key=cyclic]                  a parameter, offered to every rule that has it
    speculate-and-execute[evict=lfu]         another rule for one role
    prefetch-and-refetch[evict=least-stale[key=left-first],predictor=residual]
    belady[bypass]                           a flag: bypass=true
    mine.py:MyEvict[half_life=64]            a rule in a file of your own; `lru` beside it
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict

from moesim.catalogue import find, names
from moesim.errors import ConfigError, nearest
from moesim.policies.own_rule import is_own_rule, own_rule, role_of
from moesim.policies.registry import ROLES, optional_type, parameters, rule_class
from moesim.policies.roles import Budget, Draft, Evict, OnMiss, Prefetch, Route
from moesim.trace import Trace
from moesim.yaml_file import read_model


class PolicySpec(BaseModel):
    """What configs/policies/NAME.yaml may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    source: str
    route: str = "true-top-k"
    prefetch: str = "none"
    on_miss: str = "fetch"
    evict: str = "lru"
    draft: str = "none"
    budget: str = "shared"
    cache: Literal["any", "none", "all"] = "any"
    """`none`: cache fraction 0 by definition; `all`: every expert resident; `any`: as configured."""
    bound: bool = False
    """A bound that no deployable policy reaches, and labelled so everywhere."""
    open_rules: list[str] = []
    """What the source leaves open, and the variant chosen here."""


@dataclass(frozen=True)
class Policy:
    """Rules put together. Made anew for every run: rules have memory."""

    name: str
    """As written, in one canonical form."""
    spec: PolicySpec
    route: Route
    prefetch: Prefetch
    on_miss: OnMiss
    draft: Draft
    budget: Budget
    evictions: tuple[str, tuple[tuple[str, Any], ...]]
    rules: Mapping[str, tuple[str, Mapping[str, Any]]]
    """Of each role: the rule's name and the parameters that it was given."""
    bound_text: str
    """The optimum on the same accesses, as text: belady with this policy's route and draft."""

    @property
    def executed_predictor(self) -> str | None:
        """The channel whose ranking is executed where the router is not asked; None where nothing is guessed."""
        foresight = getattr(self.route, "foresight", None)
        return None if foresight is None else foresight.channel

    @property
    def open_loop(self) -> bool:
        """Whether predictions are executed that were made from the true model's states, not from speculated ones."""
        return getattr(self.route, "foresight", None) is not None

    @property
    def lossless(self) -> bool:
        """True when the outputs are those of the true model."""
        return self.route.lossless and self.on_miss.lossless

    @property
    def oracle(self) -> bool:
        """Whether the eviction reads the future."""
        return cast(bool, rule_class("evict", self.evictions[0]).oracle)  # type: ignore[attr-defined]

    @property
    def reads_ahead(self) -> bool:
        """Whether a rule reads what the router will choose: an oracle, or a synthetic predictor of chosen accuracy."""
        return self.oracle or self.route.reads_ahead or self.prefetch.reads_ahead or self.draft.reads_ahead

    @property
    def uses_cpu(self) -> bool:
        """Whether a rule may have experts executed on the CPU."""
        return self.on_miss.uses_cpu

    def new_evictions(self, pools: int) -> list[Evict]:
        """One fresh eviction rule per pool of slots."""
        name, arguments = self.evictions
        return [rule_class("evict", name)(**dict(arguments)) for _ in range(pools)]

    def check(self, trace: Trace) -> None:
        """Raise ConfigError if the trace lacks a channel that a rule reads."""
        self.route.check(trace)
        self.prefetch.check(trace)
        self.draft.check(trace)


def split_call(text: str) -> tuple[str, dict[str, str]]:
    """`name[a=1,b=c[d=2],flag]` as its name and its arguments. Raises ConfigError on unbalanced brackets."""
    text = text.strip()
    name, bracket, inside = text.partition("[")
    if not bracket:
        if "]" in text or not text:
            raise ConfigError(f"policy {text!r}: expected NAME or NAME[key=value,...]")
        return text, {}
    if not inside.endswith("]"):
        raise ConfigError(f"policy {text!r}: the bracket is not closed")
    arguments: dict[str, str] = {}
    for part in _split_commas(inside[:-1], text):
        key, equals, value = part.partition("=")
        if not key.strip():
            raise ConfigError(f"policy {text!r}: an argument has no name")
        if key.strip() in arguments:
            raise ConfigError(f"policy {text!r}: {key.strip()} is given twice")
        arguments[key.strip()] = value.strip() if equals else "true"
    return name.strip(), arguments


def _split_commas(text: str, whole: str) -> Iterator[str]:
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth < 0:
            raise ConfigError(f"policy {whole!r}: brackets do not match")
        if letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    if depth:
        raise ConfigError(f"policy {whole!r}: brackets do not match")
    if text[start:].strip():
        yield text[start:]


def load_spec(name: str) -> PolicySpec:
    """The composition that configs/policies/NAME.yaml describes; of an own rule, `lru` with it in its role."""
    if is_own_rule(name):
        rule = own_rule(name)
        about = inspect.getdoc(rule) or name
        said = {"name": name, "summary": about.splitlines()[0], "source": name, role_of(rule): name}
        return PolicySpec.model_validate(said)
    return read_model(find("policies", name), PolicySpec)


def parse(text: str) -> Policy:
    """Compose a policy from its text. Raises ConfigError naming what is unknown and the nearest known names."""
    name, arguments = split_call(text)
    spec = load_spec(name)
    given: dict[str, tuple[str, dict[str, Any]]] = {}
    for role in ROLES:
        rule, rule_arguments = split_call(arguments.pop(role, getattr(spec, role)))
        given[role] = rule, _values(role, rule, rule_arguments, text)
    for key, value in arguments.items():
        takers = [role for role, (rule, _) in given.items() if key in parameters(rule_class(role, rule))]
        if not takers:
            known = {p for role, (rule, _) in given.items() for p in parameters(rule_class(role, rule))}
            raise ConfigError(f"policy {text!r}: unknown parameter {key!r}: {nearest(key, known | set(ROLES))}")
        for role in takers:
            rule, rule_arguments = given[role]
            rule_arguments.update(_values(role, rule, {key: value}, text))
    made = {role: rule_class(role, rule)(**rule_arguments) for role, (rule, rule_arguments) in given.items()}
    if cast(Route, made["route"]).copies > 1 and cast(Draft, made["draft"]).longest:
        batches, single = given["route"][0], given["draft"][0]
        raise ConfigError(f"policy {text!r}: {batches} foresees batches, {single} single sequences")
    on_miss_rule = cast(OnMiss, made["on_miss"])
    if cast(Route, made["route"]).copies > 1 and (on_miss_rule.low or not on_miss_rule.fetches):
        raise ConfigError(f"policy {text!r}: copies of an expert are fetched whole; {given['on_miss'][0]} does not")
    evict, evict_arguments = given["evict"]
    if rule_class("evict", evict).oracle and made["route"].looks_at_cache:  # type: ignore[attr-defined]
        route = given["route"][0]
        raise ConfigError(f"policy {text!r}: {route} routes by what is resident: {evict} has no future to know")
    _check_precisions(text, given, made)
    return Policy(
        name=text.replace(" ", ""),
        spec=spec,
        route=cast(Route, made["route"]),
        prefetch=cast(Prefetch, made["prefetch"]),
        on_miss=cast(OnMiss, made["on_miss"]),
        draft=cast(Draft, made["draft"]),
        budget=cast(Budget, made["budget"]),
        evictions=(evict, tuple(sorted(evict_arguments.items()))),
        rules=given,
        bound_text=_bound(given),
    )


def _check_precisions(text: str, given: Mapping[str, tuple[str, Any]], made: Mapping[str, Any]) -> None:
    """Raise ConfigError where low precision is fetched and has no slots, or has slots and is never fetched."""
    (on_miss, _), (budget, _), (evict, _) = given["on_miss"], given["budget"], given["evict"]
    low = made["on_miss"].low
    if low is not None and not made["budget"].keeps_low:
        raise ConfigError(f"policy {text!r}: {on_miss} fetches {low}: give budget=two-precisions, not {budget}")
    if low is None and made["budget"].keeps_low:
        raise ConfigError(f"policy {text!r}: budget {budget} keeps a low precision that {on_miss} never fetches")
    if low is not None and rule_class("evict", evict).oracle:  # type: ignore[attr-defined]
        raise ConfigError(f"policy {text!r}: {on_miss} fetches by what is resident: {evict} has no future to know")


def files(text: str) -> dict[str, Path]:
    """The files that a policy is made of, beside the package: `policy` and, by role, those of own rules."""
    name, arguments = split_call(text)
    named = {role: split_call(arguments[role])[0] for role in ROLES if role in arguments}
    found = {role: _own_file(rule) for role, rule in named.items() if is_own_rule(rule)}
    return {"policy": _own_file(name) if is_own_rule(name) else find("policies", name), **found}


def _own_file(rule: str) -> Path:
    return Path(rule.rpartition(":")[0])


def _bound(given: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    roles = [role for role in ("route", "draft") if given[role][0] != "none"]
    return f"belady[{','.join(f'{role}={_as_text(*given[role])}' for role in roles)}]"


def _as_text(rule: str, arguments: Mapping[str, Any]) -> str:
    inside = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(arguments.items()))
    return f"{rule}[{inside}]" if inside else rule


def _values(role: str, rule: str, arguments: dict[str, str], text: str) -> dict[str, Any]:
    known = parameters(rule_class(role, rule))
    values = {}
    for key, value in arguments.items():
        if key not in known:
            raise ConfigError(f"policy {text!r}: {rule} has no parameter {key!r}: {nearest(key, known)}")
        default = known[key]
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"policy {text!r}: {key}={value}: no plain value") from None
        expected = type(default) if default is not None else optional_type(rule_class(role, rule), key)
        if type(parsed) is not expected:
            raise ConfigError(f"policy {text!r}: {key}={value}: expected a {expected.__name__}")
        values[key] = parsed
    return values


def known_policies() -> list[str]:
    """Names of all compositions that can be asked for."""
    return names("policies")
