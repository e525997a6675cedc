"""The governor against the formula of the paper, worked out by brute force over all lengths."""

from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.draft.costs import CycleCosts, cycle_costs
from moesim.draft.governor import Governor
from moesim.draft.plan import governed_lengths
from moesim.engine import EngineSpec
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.prepare import prepare
from moesim.run import simulate
from moesim.run_config import RunConfig

SHIPPED = Path(__file__).parents[2] / "traces" / "reference-16x64.safetensors"


def best_by_brute_force(costs, p, brought, shortest, longest, own, objective):
    """argmax over k of (own + sum of products) / T_cycle, by the formula and nothing else."""
    rates = {}
    for k in range(shortest, longest + 1):
        tokens = own + sum(prod(p[:i]) for i in range(1, k + 1))

        def copies(experts):
            return costs.copy_start_up_ns + experts * costs.copy_ns if experts else 0

        hidden = sum(brought[: k - 1]) if k else 0
        behind = copies(sum(brought[: k + 1]) - hidden)
        cycle = max(k * costs.draft_pass_ns, copies(hidden)) + behind + costs.verify_ns[k]
        if k > shortest and objective is not None and cycle > objective:
            break
        rates[k] = tokens / cycle
    return max(rates, key=lambda k: (rates[k], -k))


@given(
    p=st.lists(st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0]), min_size=6, max_size=6),
    brought=st.lists(st.integers(0, 40), min_size=7, max_size=7),
    draft_pass=st.integers(1, 500), copy=st.integers(1, 500), verify=st.integers(1, 2000), more=st.integers(0, 300),
    shortest=st.integers(0, 3), own=st.sampled_from([0, 1]), objective=st.sampled_from([None, 1500, 6000]),
)
def test_the_best_length_is_the_one_that_brute_force_finds(
    p, brought, draft_pass, copy, verify, more, shortest, own, objective
):
    costs = CycleCosts(draft_pass, tuple(verify + more * n for n in range(7)), 15, copy)
    governor = Governor(
        costs, shortest, 6, first_brought=64, counts_own_token=own == 1, objective_ns=objective, smoothing=1.0
    )
    # With smoothing 1 the last value seen is the average: p must be seen as 0 or 1 and then set by hand.
    governor.learn(6, 6, brought)
    governor._right[:] = p
    assert governor.choose() == best_by_brute_force(costs, p, brought, shortest, 6, own, objective)


def test_by_hand():
    # A pass takes 10, a step 100 + 10 for each further token, a copy 50 behind a start-up of 5.
    costs = CycleCosts(10, tuple(100 + 10 * n for n in range(4)), 5, 50)
    governor = Governor(costs, 0, 3, first_brought=9)
    governor.learn(3, 3, [2, 1, 0, 0])
    # k = 0: its token brings 2. k = 2: the first token's 2 hide behind 20 of drafting, 105 against 20; then 1 more.
    assert governor.cycle_ns(0) == 5 + 2 * 50 + 100
    assert governor.cycle_ns(2) == max(20, 5 + 2 * 50) + (5 + 50) + 120
    assert governor.cycle_ns(3) == max(30, 5 + 3 * 50) + 0 + 130
    p = [0.91, 0.919, 0.9271]  # each from the one before it, the first from 0.9, a tenth of the way to 1
    expected = [1 + sum(prod(p[: i + 1]) for i in range(k)) for k in range(4)]
    assert [governor.tokens(k) for k in range(4)] == pytest.approx(expected)
    assert governor.choose() == 3  # 3.5 / 285 against 2.7 / 280
    governor.learn(3, 0, [2, 1, 0, 0])  # the first draft was wrong: p_1 falls, p_2 and p_3 were not judged
    p[0] *= 0.9
    assert governor.tokens(3) == pytest.approx(1 + p[0] + p[0] * p[1] + prod(p))


def test_a_draft_that_is_never_right_is_not_made_and_one_that_always_is_is_long():
    costs = CycleCosts(10, tuple(1000 + n for n in range(9)), 5, 50)
    never, always = (Governor(costs, 0, 8, first_brought=10) for _ in range(2))
    for _ in range(80):
        never.learn(8, 0, [4] + [0] * 8)
        always.learn(8, 8, [4] + [0] * 8)
    assert never.choose() == 0
    assert always.choose() == 8


def config(policy, **more):
    values = {
        "trace": SHIPPED, "model": "olmoe-1b-7b", "hardware": "rtx-a6000", "policy": policy, "cache_fraction": 0.6,
        "warmup_tokens": 8, "measured_tokens": 60, "interval": False,
    }
    return RunConfig(**(values | more))


def test_lengths_depend_on_the_machine_and_not_on_its_clock():
    slow, fast = (
        prepare(config("moe-speq", hardware_overrides={"link_bytes_per_s": rate})).window.draft_lengths
        for rate in (25e9, 1e11)
    )
    assert sum(fast) / len(fast) > sum(slow) / len(slow), "on a fast link what a longer draft brings costs less"
    governed_lengths.cache_clear()
    again = prepare(config("moe-speq", hardware_overrides={"link_bytes_per_s": 25e9}))
    assert again.window.draft_lengths == slow


def test_a_governor_that_may_choose_one_length_is_that_fixed_draft():
    governed = simulate(config("moe-speq[shortest=3,longest=3]")).row()
    fixed = simulate(config("moe-speq[draft=self-draft[k=3]]")).row()
    assert {name for name in fixed if fixed[name] != governed[name]} == {"policy", "configuration", "run_hash"}


def test_the_costs_of_a_cycle_are_what_an_idle_machine_takes():
    model, hardware = ModelSpec.load("olmoe-1b-7b"), HardwareSpec.load("h200").at("centre")
    engine = EngineSpec.load("graph")
    costs = cycle_costs(model, "int4", hardware, engine, 512, 4)
    assert len(costs.verify_ns) == 5
    assert list(costs.verify_ns) == sorted(costs.verify_ns)
    assert costs.copy_ns == round(model.expert_bytes * 1e9 / hardware.link_bytes_per_s + hardware.copy_descriptor_ns)
    assert costs.draft_pass_ns < costs.verify_ns[0]
