"""How the memory for experts is divided: against every possible division, and by hand."""

from itertools import product

import numpy as np
import pytest

from moesim.capacity import Capacity, Memory
from moesim.decide import Decider, run_without_clock
from moesim.errors import ConfigError
from moesim.events import steps
from moesim.policies.composition import parse
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.test_replay import SHIPPED
from tests.traces_for_tests import random_trace


def memory(trace, slots, **more):
    return Memory(slots, trace.layers, trace.n_experts, trace.top_k, 1000, 250, trace, **more)


def lru_misses(events, slots):
    """Of one layer, one event after another; `events` hold experts, heaviest first."""
    recency, missed = [], 0
    for experts in events:
        missed += sum(expert not in recency for expert in experts)
        recency = [expert for expert in recency if expert not in experts] + experts[::-1]
        recency = recency[-slots:]
    return missed


@pytest.mark.parametrize("seed", range(4))
def test_no_split_beats_the_one_of_dynamic_programming(seed):
    trace = random_trace(60, 3, 5, 2, seed=seed)
    trace.experts[:, 1] = trace.experts[:1, 1]  # one layer always wants the same two
    curve = [[lru_misses(trace.experts[:, layer].tolist(), slots) for slots in range(6)] for layer in range(3)]
    for slots in range(6, 16):
        capacity = parse("lru[budget=best-split[profile=0]]").budget.divide(memory(trace, slots))
        best = min(
            sum(curve[layer][part] for layer, part in enumerate(parts))
            for parts in product(range(2, 6), repeat=3) if sum(parts) == slots
        )
        assert sum(capacity.of_layers) == slots
        assert capacity.slots == min(capacity.of_layers)
        decider = Decider(parse("lru"), 3, 5, capacity, largest_event=2)
        assert decider.slots == slots
        assert sum(each.misses.total() for each in run_without_clock(decider, steps(trace))) == best


def test_the_profile_is_the_start_of_the_trace():
    trace = random_trace(60, 3, 5, 2, prompt=7, seed=3)
    other = random_trace(60, 3, 5, 2, prompt=7, seed=3)
    other.experts[27:] = np.roll(other.experts[27:], 1, axis=1)
    rule = parse("lru[budget=best-split[profile=20]]").budget
    split, same = (rule.divide(memory(each, 9)) for each in (trace, other))
    assert split == same


def test_shares_are_rounded_down_to_slots_and_held_to_the_experts_there_are():
    trace = random_trace(10, 4, 8, 2)
    shares = parse("lru[budget=per-layer[shares=2/1/1/0.5]]").budget
    assert shares.divide(memory(trace, 9)) == Capacity(1, per_layer=True, of_layers=(4, 2, 2, 1))
    assert shares.divide(memory(trace, 27)).of_layers == (8, 6, 6, 3)
    assert parse("lru[budget=per-layer]").budget.divide(memory(trace, 11)) == Capacity(2, per_layer=True)
    assert parse("lru").budget.divide(memory(trace, 11, per_layer=True)) == Capacity(2, per_layer=True)


def test_two_precisions_hold_the_bytes_that_they_are_given():
    trace = random_trace(10, 4, 8, 2)
    rule = parse("hobbit[budget=two-precisions[low=0.25]]").budget
    assert rule.divide(memory(trace, 8)) == Capacity(6, low_slots=8)
    assert rule.divide(memory(trace, 32, per_layer=True)) == Capacity(6, low_slots=8, per_layer=True)


@pytest.mark.parametrize(
    ("policy", "rule"),
    [("lru[budget=per-layer[shares=1/2]]", "2 shares for 16 layers"), ("lru[budget=per-layer[shares=a]]", "numbers"),
     ("lru[budget=best-split[profile=-1]]", "0"), ("lru[budget=nowhere]", "unknown budget rule")],
)
def test_what_cannot_be_divided_is_said_in_one_line(policy, rule):
    config = RunConfig(trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-4090", policy=policy, cache_fraction=0.25)
    with pytest.raises(ConfigError, match=rule) as error:
        simulate(config)
    assert "\n" not in str(error.value)


def test_an_even_split_is_the_same_by_either_name():
    config = RunConfig(
        trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-4090", policy="lru", cache_fraction=0.25, per_layer=True,
        interval=False, measured_tokens=4, warmup_tokens=4,
    )
    named = config.model_copy(update={"policy": "lru[budget=per-layer]", "per_layer": False})
    told = ("policy", "configuration", "run_hash")
    first, second = ({key: value for key, value in simulate(each).row().items() if key not in told}
                     for each in (config, named))
    assert first == second
