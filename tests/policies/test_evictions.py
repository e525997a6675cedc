"""Each eviction rule against a scan that recomputes the paper's formula for every resident at every eviction."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.policies.composition import parse
from tests.oracles import scan
from tests.policies.scanned import decisions, events_of, same
from tests.traces_for_tests import PREDICTOR, random_trace

RULES = [*(name for name in scan.FORMULAS if " " not in name), "slru", "random"]


def several_requests(trace, length):
    return replace(trace, request=(np.arange(trace.tokens) // length).astype(np.uint32))


def ranked(trace):
    """What prefetch-and-refetch asks for: the recorded ranking of the next layer."""
    ranking = trace.predicted[PREDICTOR].ranking

    def ask(event, residents):
        ahead = event.layer + 1
        if ahead == trace.layers:
            return []
        return [(ahead, int(expert)) for expert in ranking[event.step, ahead, : trace.top_k] if expert != trace.absent]

    return ask


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(3, 8, 2), (2, 6, 3), (5, 4, 1), (1, 9, 2)]),
    length=st.sampled_from([5, 90]), spare=st.integers(0, 24),
)
def test_victims_are_those_of_the_formula(rule, seed, shape, length, spare):
    trace = several_requests(random_trace(40, *shape, seed=seed), length)
    slots = trace.top_k + spare
    outcomes = scan.simulate(list(events_of(trace)), slots, rule, layers=trace.layers)
    same(decisions(f"lru[evict={rule}]", trace, slots), outcomes, trace.n_experts)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "random"])  # pins decide how often it throws
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(3, 8, 2), (2, 6, 3), (5, 4, 1)]),
    length=st.sampled_from([5, 90]), spare=st.integers(0, 24),
)
def test_victims_are_those_of_the_formula_beside_prefetches(rule, seed, shape, length, spare):
    trace = several_requests(random_trace(40, *shape, seed=seed), length)
    slots = trace.top_k + spare
    outcomes = scan.simulate(list(events_of(trace)), slots, rule, layers=trace.layers, ask=ranked(trace))
    same(decisions(f"prefetch-and-refetch[evict={rule}]", trace, slots), outcomes, trace.n_experts)


def test_hobbit_weighs_its_terms_as_asked(monkeypatch):
    trace = several_requests(random_trace(60, 3, 8, 2, seed=2), 20)
    weights = (Fraction(1, 8), Fraction(1, 2), Fraction(0), Fraction(3, 8))

    monkeypatch.setitem(scan.FORMULAS, "weighted", lambda key, past, now: scan.hobbit(key, past, now, weights))
    outcomes = scan.simulate(list(events_of(trace)), 7, "weighted", layers=3)
    same(decisions("lru[evict=hobbit[lru=0.125,lfu=0.5,lhu=0.0,fld=0.375]]", trace, 7), outcomes, 8)


@pytest.mark.parametrize("slots", [4, 9, 17])
def test_hobbit_in_whole_numbers_is_hobbit(slots):
    trace = several_requests(random_trace(60, 3, 8, 2, seed=slots), 20)
    first, second = (
        scan.simulate(list(events_of(trace)), slots, name, layers=3) for name in ("hobbit", "hobbit in whole numbers")
    )
    assert first == second


def test_a_priority_that_has_decayed_to_another_is_a_tie():
    """μ·(1/4)^(ν/128) halves every 64 tokens: twice used 64 tokens ago equals once used now, and the older goes."""
    rule = parse("lru[evict=lcp]").new_evictions(1)[0]
    rule._token = 10
    rule.on_insert(0)
    first, _ = rule.on_hit(0)
    rule._token = 74
    second, _ = rule.on_insert(1)
    assert first == second
    for uses in (3, 5, 7, 11):  # the same with counts whose logarithm is not exact
        for expert, token, count in ((uses, 0, 4 * uses), (100 + uses, 128, uses)):
            rule._token = token
            for _ in range(count):
                rule.on_hit(expert)
        assert rule._key(uses)[0] == rule._key(100 + uses)[0]


def test_random_victims_are_even():
    """Each of 12 residents beside 2 pinned ones goes equally often: chi-squared with 11 degrees of freedom."""
    rule = parse("lru[evict=random]").new_evictions(1)[0]
    residents, pinned = list(range(14)), {3, 7}
    drawn = Counter(rule.draw(residents, pinned) for _ in range(12_000))
    assert set(drawn) == set(residents) - pinned
    assert sum((count - 1000) ** 2 / 1000 for count in drawn.values()) < 31.3  # p = 0.001
    assert rule.draw([1, 2], {1, 2}) is None


def test_another_seed_is_another_sequence():
    trace = random_trace(60, seed=4)
    first, second = (repr(decisions(f"lru[evict=random[seed={seed}]]", trace, 7)) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("rule", ["slru[protected=1.5]", "lcp[rho=1.0]", "lcp[omega=0.0]", "lcp[counts=never]"])
def test_a_parameter_out_of_range_is_one_line(rule):
    with pytest.raises(ConfigError, match=r"^policy: "):
        parse(f"lru[evict={rule}]").new_evictions(1)
