"""Experts in two precisions: against a scan of all slots, by hand, and what must be conserved."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.decision import Decision
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import steps
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.policies.composition import parse
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.oracles import two_precisions
from tests.oracles.shipped_counts import EIGHT_SLOTS
from tests.policies.scanned import events_of, with_scores
from tests.policies.test_contract import check_every_event
from tests.policies.test_shipped_counts import shipped
from tests.test_replay import SHIPPED
from tests.traces_for_tests import random_trace

CASCADE = "lru[on_miss=precision-cascade,budget=two-precisions,evict={}]"
LOWEST = "lru[on_miss=lowest-bit,budget=two-precisions,evict={}]"
HOBBIT = "hobbit[predictor=synthetic[recall=1]]"


def decisions(policy, trace, slots, low_slots):
    decider = Decider(
        parse(policy), trace.layers, trace.n_experts, Capacity(slots, low_slots=low_slots), largest_event=trace.top_k
    )
    return list(run_without_clock(decider, steps(trace)))


def test_a_demand_takes_a_slot_of_its_own_precision_from_guesses():
    """Low guesses for the layer itself give nothing up that a demand in high precision could use; later layers' do."""
    layers, experts = 3, 8
    decider = Decider(parse("hobbit"), layers, experts, Capacity(2, low_slots=2), largest_event=2)
    decision, low = Decision(0, [], [], reads_router=True, needs_true_ids=False), layers * experts
    assert decider._prefetch(decision, [low + 8, low + 9]) == decider._prefetch(decision, [16, 17]) == []
    wave, rest = decider._wave(decider._pool_of[1], 1, [13], {13: decider._evict_of[1].on_insert(13)})
    assert (wave.execute, rest) == ([13], [])
    assert wave.demand[0].displaced == 16


def key_of(expert, trace):
    version, rest = divmod(expert, trace.layers * trace.n_experts)
    return (*divmod(rest, trace.n_experts), version)


def check_same(made, outcomes, trace):
    for decision, outcome in zip(made, outcomes, strict=True):
        demand = [copy for wave in decision.waves for copy in wave.demand]
        executed = {key_of(expert, trace)[1] for wave in decision.waves for expert in wave.execute}
        assert decision.hits == len(outcome.hits)
        assert {key_of(copy.expert, trace)[1] for copy in demand} == outcome.fetched
        assert executed == set(outcome.accessed) - outcome.stood_in
        assert [key_of(copy.expert, trace) for copy in decision.prefetch] == outcome.prefetched
        gone = [key_of(copy.displaced, trace) for copy in demand + decision.prefetch if copy.displaced is not None]
        assert sorted(gone) == sorted(outcome.victims)
        assert decision.prefetch_dropped == outcome.dropped


@pytest.mark.parametrize("evict", ["lru", "lfu", "hobbit", "least-stale", "fld", "score", "cyclic-lru", "slru"])
@pytest.mark.parametrize("rule", [CASCADE, LOWEST])
def test_hits_copies_and_victims_are_those_of_a_scan(rule, evict):
    for seed in range(3):
        trace = with_scores(random_trace(30, 3, 8, 3, seed=seed), seed)
        events = list(events_of(trace))
        needs = two_precisions.by_weight if rule is CASCADE else lambda event: dict.fromkeys(event.experts, 1)
        for slots, low_slots in ((3, 3), (6, 4), (12, 9)):
            expected = two_precisions.simulate(events, slots, low_slots, evict, layers=3, needs=needs)
            check_same(decisions(rule.format(evict), trace, slots, low_slots), expected, trace)


def test_hobbit_whole_is_that_of_a_scan():
    for seed in range(6):
        trace = with_scores(random_trace(30, 4, 8, 2, seed=seed), seed)
        events = list(events_of(trace))
        expected = two_precisions.simulate(
            events, 14, 10, "hobbit", layers=4, needs=two_precisions.by_weight,
            ask=two_precisions.cascade_ahead(events),
        )
        check_same(decisions(HOBBIT, trace, 14, 10), expected, trace)


def test_the_cascade_by_hand():
    """Weights .5 .3 .15 .05: s = 0, .5, .8, .95: high, high, low, skipped."""
    trace = random_trace(3, 1, 8, 4, seed=1)
    trace.experts[:] = [[[0, 1, 2, 3]], [[2, 1, 0, 4]], [[4, 3, 1, 2]]]
    trace.weights[:] = [0.5, 0.3, 0.15, 0.05]
    first, second, third = decisions("lru[on_miss=precision-cascade,budget=two-precisions]", trace, 4, 4)
    low = 8
    assert (first.hits, first.stood_in, first.waves[0].execute) == (0, [3], [0, 1, low + 2])
    # 2 needs high precision now and has only the low one: a miss. 0 is resident in high: executed, whatever it needs.
    assert (second.hits, second.stood_in, second.waves[0].execute) == (2, [4], [2, 1, 0])
    assert [copy.expert for copy in second.waves[0].demand] == [2]
    # 4 and 3 come in high, so 0 and then 2 lose their slots; 1 is resident; 2 is a hit as the event begins.
    assert (third.hits, third.stood_in, third.waves[0].execute) == (2, [], [4, 3, 1, 2])
    assert [copy.displaced for copy in third.waves[0].demand] == [None, 0]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), prompt=st.sampled_from([0, 5]), per_layer=st.booleans())
@pytest.mark.parametrize(
    "policy", ["hobbit", "specmd-lowest-bit", "specmd-precision-cascade", "hobbit[evict=least-stale]"]
)
def test_the_contract_holds_with_two_pools(policy, seed, prompt, per_layer):
    trace = with_scores(random_trace(14, 3, 8, 2, prompt=prompt, seed=seed))
    check_every_event(policy, trace, Capacity(6, low_slots=4, per_layer=per_layer))
    check_every_event(policy, trace, Capacity(12, workspace=True, low_slots=12))


COUNTS = {
    HOBBIT: (
        (2469, 2162), (2241, 1968), (1970, 1715), (1824, 1581), (1268, 1092), (863, 732), (712, 604), (527, 442)
    ),
    "specmd-lowest-bit": ((1582, 0), (918, 0), (785, 0), (727, 0), (413, 0), (284, 0), (212, 0), (133, 0)),
    "specmd-precision-cascade": ((1586, 0), (988, 0), (890, 0), (857, 0), (578, 0), (414, 0), (344, 0), (203, 0)),
}
"""Misses, and those that were skipped, at eight sizes; printed by `python -m tests.oracles.shipped_counts`."""


@pytest.mark.parametrize("policy", COUNTS)
def test_misses_at_eight_sizes(policy):
    trace = shipped("reference-16x64-scores" if policy == HOBBIT else "reference-16x64")
    counted = []
    for slots in EIGHT_SLOTS:
        made = decisions(policy, trace, slots, max(trace.top_k, slots // 2))
        counted.append((sum(each.misses.total() for each in made), sum(len(each.stood_in) for each in made)))
    assert tuple(counted) == COUNTS[policy]


@pytest.mark.parametrize(
    ("given_policy", "rule"),
    [("lru[on_miss=fetch,budget=two-precisions]", "never fetches"), ("lru[on_miss=lowest-bit]", "two-precisions"),
     ("lru[on_miss=lowest-bit,budget=two-precisions,evict=belady]", "no future"),
     ("lru[on_miss=lowest-bit[low=int3],budget=two-precisions]", "int"),
     ("lru[on_miss=precision-cascade[high=0.9,skip=0.5],budget=two-precisions]", "high <= skip"),
     ("hobbit[budget=two-precisions[low=1.0]]", "between 0 and 1")],
)
def test_what_does_not_fit_together_is_said_in_one_line(given_policy, rule):
    with pytest.raises(ConfigError, match=rule) as error:
        parse(given_policy)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def rows():
    config = RunConfig(
        trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-4090", policy="lru", cache_fraction=0.25,
        context_tokens=256, interval=False, warmup_tokens=8, measured_tokens=60,
    )
    return {
        policy: simulate(config.model_copy(update={"policy": policy})).row()
        for policy in ("lru", "hobbit", CASCADE.format("lru"), "lru[on_miss=precision-cascade[high=1.0,skip=1.0],"
                       "budget=two-precisions[low=0.02]]")
    }


def test_bytes_slots_and_weights_are_conserved(rows):
    model = ModelSpec.load("olmoe-1b-7b")
    high, low = model.expert_bytes, model.expert_bytes_in("int4")
    assert (high, low) == (3 * 2048 * 1024 * 2, 3 * 2048 * 1024 * 9 // 16)
    assert rows["lru"]["copies_low"] == 0
    assert rows["lru"]["bytes_copied"] == rows["lru"]["copies"] * high
    for policy in ("hobbit", CASCADE.format("lru")):
        row = rows[policy]
        assert 0 < row["copies_low"] < row["copies"]
        assert row["bytes_copied"] == (row["copies"] - row["copies_low"]) * high + row["copies_low"] * low
        budget = 256 * high
        assert budget - high < row["slots"] * high + row["slots_low"] * low <= budget
        assert row["copies"] == row["misses"] - row["stood_in"] + row["prefetches"]
        assert 0 < row["weight_executed_low"] < 1 - 0.6
        assert row["weight_executed_low"] < row["weight_executed"] <= 1
        assert not row["lossless"]
        assert row["low_precision"] == "int4"


def test_the_link_is_busy_for_the_bytes_of_each_precision(rows):
    """The device's own account, which knows no expert: bytes over the link, and what every copy costs beside them."""
    machine = HardwareSpec.load("rtx-4090").at("centre")
    pieces = EngineSpec.load("yalis").copies_per_expert
    for policy in ("lru", CASCADE.format("lru")):
        row = rows[policy]
        expected_ns = row["bytes_copied"] * 1e9 / machine.link_bytes_per_s
        expected_ns += row["copies"] * pieces * machine.copy_descriptor_ns
        busy_ns = row["link_utilisation"] * row["decode_total_ns"]
        assert expected_ns <= busy_ns * 1.001
        assert busy_ns <= 1.001 * (expected_ns + row["copies"] * pieces * machine.copy_start_up_ns)


def test_a_cascade_that_needs_high_precision_only_is_lru_with_fewer_slots(rows):
    row = next(row for policy, row in rows.items() if "high=1.0" in policy)
    assert row["copies_low"] == 0
    assert row["weight_executed"] == 1
    plain = simulate(RunConfig(
        trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-4090", policy="lru", context_tokens=256, interval=False,
        warmup_tokens=8, measured_tokens=60, cache_fraction=(row["slots"] + 0.5) / 1024,
    )).row()
    assert plain["slots"] == row["slots"]
    for column in ("tpot_mean_ns", "hits", "misses", "bytes_copied"):
        assert plain[column] == row[column]
