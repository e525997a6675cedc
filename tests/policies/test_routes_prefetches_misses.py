"""Routes, prefetches and miss rules against plain readings of their papers (tests/oracles/rules.py), event by event."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.errors import ConfigError
from moesim.events import steps
from moesim.policies.composition import parse
from moesim.policies.foresight import Synthetic
from tests.oracles import rules, scan
from tests.policies.scanned import decisions, events_of, same, with_scores
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace


def of(role):
    """Our policy's text and the oracle's rule, made anew for a trace and its events."""
    return {
        "route": {
            "cache-prior": lambda trace, events: {"choose": rules.cache_prior()},
            "cache-prior[strength=2.0,keep=0]": lambda trace, events: {"choose": rules.cache_prior(2.0, 0)},
            "max-rank": lambda trace, events: {"choose": rules.max_rank()},
            "max-rank[keep=0,rank=3]": lambda trace, events: {"choose": rules.max_rank(0, 3)},
            "cumulative-threshold": lambda trace, events: {"choose": rules.max_rank(mass=0.6)},
            "cumulative-threshold[keep=0,mass=0.9]": lambda trace, events: {"choose": rules.max_rank(0, mass=0.9)},
            "substitute": lambda trace, events: {"choose": rules.substitute()},
            "adaptive-top-1": lambda trace, events: {"choose": rules.adaptive_top_1()},
            "adaptive-top-1[threshold=0.2]": lambda trace, events: {"choose": rules.adaptive_top_1(0.2)},
        },
        "prefetch": {
            "pre-gated": lambda trace, events: {"ask": rules.truth(events)},
            "predicted[predictor=synthetic[recall=1]]": lambda trace, events: {"ask": rules.truth(events)},
            "multi-layer[predictor=synthetic[recall=1]]": lambda trace, events: {"ask": rules.multi_layer(events)},
            "multi-layer[predictor=synthetic[recall=1.0],layers=2]":
                lambda trace, events: {"ask": rules.multi_layer(events, 2)},
            "static-frequency": lambda trace, events: {"ask": rules.static_frequency(trace.layers, trace.top_k)},
            "activation-matrix":
                lambda trace, events: {"ask": rules.activation_matrix(trace.layers, trace.n_experts, trace.top_k)},
            "expert-map[distance=1]": lambda trace, events: {"ask": rules.expert_map(trace.layers, trace.top_k, 1)},
            "expert-map[distance=2]": lambda trace, events: {"ask": rules.expert_map(trace.layers, trace.top_k, 2)},
        },
        "on_miss": {
            "drop": lambda trace, events: {"fetched": rules.drop, "ask": rules.truth(events)},
            "skip-light": lambda trace, events: {"fetched": rules.skip_light},
            "skip-light[skip=0.5]":
                lambda trace, events: {"fetched": lambda event, missing: rules.skip_light(event, missing, 0.5)},
        },
    }[role]


CASES = [(role, rule) for role in ("route", "prefetch", "on_miss") for rule in of(role)]


@pytest.mark.parametrize(("role", "rule"), CASES)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(4, 8, 2), (3, 6, 3), (5, 4, 1)]),
    scored=st.booleans(), spare=st.integers(0, 24), evict=st.sampled_from(["lru", "lhu", "score", "hobbit"]),
)
def test_it_does_what_its_paper_says(role, rule, seed, shape, scored, spare, evict):
    trace = random_trace(40, *shape, seed=seed)
    trace = replace(trace, request=(np.arange(40) // 9).astype(np.uint32))
    if scored or role == "route":
        trace = with_scores(trace, seed)
    events = list(events_of(trace))
    oracle = of(role)[rule](trace, events)
    prefetch = ",prefetch=pre-gated" if rule == "drop" else ""
    slots = trace.top_k + spare
    outcomes = scan.simulate(events, slots, evict, layers=trace.layers, **oracle)
    made = decisions(f"lru[{role}={rule}{prefetch},evict={evict}]", trace, slots)
    same(made, outcomes, trace.n_experts)
    if role == "route":  # the true choices that were executed, by weight
        for decision, outcome, event in zip(made, outcomes, events, strict=True):
            pairs = zip(event.experts, event.weights, strict=True)
            expected = sum(weight for expert, weight in pairs if expert in outcome.accessed)
            assert decision.weight_executed == pytest.approx(expected, rel=1e-12)


def test_without_a_bonus_the_cache_prior_is_the_true_router():
    trace = with_scores(random_trace(50, seed=3))
    first = decisions("lru[route=cache-prior[strength=0.0]]", trace, 6)
    for decision, true in zip(first, decisions("lru", trace, 6), strict=True):
        assert (decision.hits, decision.waves, decision.prefetch) == (true.hits, true.waves, true.prefetch)


def test_a_token_of_a_batch_does_not_execute_what_only_its_neighbour_was_given():
    trace = with_scores(batched_trace(60, batch=3, seed=5))
    decider = Decider(parse("max-rank"), trace.layers, trace.n_experts, Capacity(9), largest_event=6)
    seen = 0
    for step in steps(trace):
        decider.begin(step)
        for layer in range(trace.layers):
            decision = decider.decide(step, layer)
            choices = decider.policy.route.choices
            assert [len(set(choice)) for choice in choices] == [trace.top_k] * 3
            weight = 0.0
            for row, choice in zip(range(step.rows.start, step.rows.stop), choices, strict=True):
                for expert, each in zip(trace.experts[row, layer], trace.weights[row, layer], strict=True):
                    weight += float(each) * (int(expert) in choice)
            assert decision.weight_executed == pytest.approx(weight)
            seen += any(set(choice) != set(choices[0]) for choice in choices)
            decider.finish(layer)
    assert seen, "tokens of a step differ"


@pytest.mark.parametrize("recall", ["0.9", "0.5", "0.3/0.8", "0", "1"])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_synthetic_predictor_is_as_good_as_it_was_asked_to_be(recall, seed):
    trace = random_trace(400, 3, 16, 4, seed=1)
    guess = Synthetic(recall, seed)
    wanted = [float(each) for each in recall.split("/")]
    found = [[0, 0, 0] for _ in range(3)]
    for step in steps(trace):
        for layer in (1, 2):
            ranking = guess.ranking(step, layer, 8)
            assert len(set(ranking)) == 8
            true = step.accesses[layer]
            found[layer][0] += len(set(ranking[:4]) & set(true))
            found[layer][1] += len(set(ranking) & set(true))
            found[layer][2] += true[3] in ranking[:4]
    for layer in (1, 2):
        share = wanted[min(layer - 1, len(wanted) - 1)]
        tolerance = 4 * (0.25 / 1600) ** 0.5
        assert found[layer][0] / 1600 == pytest.approx(share, abs=tolerance)
        # of 4 the first ranks miss m, and the next 4 find one of those each with the same probability
        chance = [comb(4, n) * share**n * (1 - share) ** (4 - n) for n in range(5)]
        later = sum(chance[4 - m] * chance[n] * min(m, n) for m in range(5) for n in range(5)) / 4
        assert found[layer][1] / 1600 == pytest.approx(share + later, abs=tolerance)
        assert found[layer][2] / 400 == pytest.approx(share, abs=2 * tolerance), "whatever the expert's weight"


def test_a_synthetic_prediction_belongs_to_the_token_and_not_to_the_run():
    trace = random_trace(40, seed=2)
    whole = [Synthetic("0.6", 1).ranking(step, 2, 2) for step in steps(trace)]
    part = [Synthetic("0.6", 1).ranking(step, 2, 2) for step in steps(trace.slice(11, 40))]
    other = [Synthetic("0.6", 2).ranking(step, 2, 2) for step in steps(trace)]
    assert whole[11:] == part
    assert whole != other


def test_overfetch_and_percentile_ask_for_more_of_the_same_ranking():
    trace = random_trace(30, 3, 8, 2, seed=6)
    ranking = trace.predicted[PREDICTOR].ranking
    for policy, ranks in (
        ("prefetch-and-refetch[overfetch=1.5]", 3), ("prefetch-and-refetch[count=1]", 1),
        ("prefetch-and-refetch[prefetch=score-percentile[percentile=60.0]]", 3),  # of 8: above place 4.2
        ("prefetch-and-refetch[prefetch=score-percentile]", 2),
    ):
        composed = parse(policy)
        composed.check(trace)
        composed.prefetch.prepare(3, 8)
        for row, step in enumerate(steps(trace)):
            assert composed.prefetch.wanted(step, 0) == [8 + int(expert) for expert in ranking[row, 1, :ranks]]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("cache-prior", "no array scores"),
        ("prefetch-and-refetch[predictor=residul]", "is not in the trace"),
        ("prefetch-and-refetch[overfetch=3.0]", "ranks 3 experts, but 6"),
        ("prefetch-and-refetch[prefetch=multi-layer]", None),
        ("lru[prefetch=multi-layer[predictor=residual+default-vectors]]", "foresees 1 layers ahead, but 3"),
    ],
)
def test_a_trace_that_lacks_something_is_refused(policy, message):
    trace = random_trace(10, seed=0)
    if message is None:
        parse(policy).check(trace)
        return
    with pytest.raises(ConfigError, match=message):
        parse(policy).check(trace)


@pytest.mark.parametrize(
    "policy",
    [
        "cache-prior[strength=-1.0]", "max-rank[rank=0]", "max-rank[rank=1.5]", "cumulative-threshold[mass=2.0]",
        "lru[prefetch=multi-layer[layers=0]]", "lru[prefetch=score-percentile[percentile=100.0]]",
        "lru[prefetch=static-frequency[count=0]]", "lru[prefetch=activation-matrix[stored=0]]",
        "lru[prefetch=expert-map[distance=0]]", "lru[on_miss=skip-light[skip=1.5]]",
        "lru[route=adaptive-top-1[threshold=-1.0]]",
        "prefetch-and-refetch[predictor=synthetic[recall=2]]", "prefetch-and-refetch[predictor=synthetic[recal=1]]",
        "prefetch-and-refetch[predictor=synthetic[seed=x]]", "cache-prior[evict=belady]",
    ],
)
def test_a_parameter_out_of_range_is_one_line(policy):
    with pytest.raises(ConfigError, match=r"^policy"):
        parse(policy)


def shaped(rows):
    """Tokens of two layers whose router gives these probabilities, [token][layer][expert]."""
    trace = random_trace(len(rows), 2, 8, 2, seed=0)
    scores = np.asarray(rows, dtype=np.float16)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :, :2]
    chosen = order.astype(trace.experts.dtype)
    return replace(trace, experts=chosen, scores=scores, weights=np.take_along_axis(scores, order, axis=-1))


def test_the_less_alike_a_token_is_to_all_before_the_more_experts_are_foreseen():
    sure, flat = [0.93] + [0.01] * 7, [0.125] * 8
    other = [0.01] * 6 + [0.92, 0.02]
    trace = shaped([[sure, flat], [other, flat]])
    events = list(events_of(trace))
    outcomes = scan.simulate(events, 12, layers=2, ask=rules.expert_map(2, 2, 1))
    made = decisions("lru[prefetch=expert-map[distance=1]]", trace, 12)
    same(made, outcomes, 8)
    assert len(outcomes[2].prefetched) + len(outcomes[2].hits) > 4, "far more than the top-k of 2"


def test_an_expert_behind_exactly_the_limit_is_still_fetched():
    trace = replace(random_trace(1, 1, 8, 3, seed=0), weights=np.array([[[0.5, 0.25, 0.25]]], dtype=np.float16))
    (decision,) = decisions("lru[on_miss=skip-light[skip=0.5]]", trace, 8)
    assert [copy.expert for copy in decision.waves[0].demand] == trace.experts[0, 0, :2].tolist()
    assert decision.stood_in == trace.experts[0, 0, 2:].tolist()
