"""What a world's record says of a cell, counted from deeds alone, against the policy's own account of its decisions."""

import pytest

from hw_validate.worlds import job, simulate, world
from moesim.errors import ConfigError
from moesim.run_config import RunConfig
from tests.hw_validate.cells_on_devices import ALL_POLICIES, BATCH, STEPS
from tests.test_replay import SHIPPED


@pytest.mark.parametrize(("slots", "batch"), [("none", 1), ("top-k", BATCH), ("25%", 1), ("all", BATCH)])
@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_hits_misses_and_bytes_are_those_that_the_policy_counted(cpu_machine, policy, slots, batch):
    cache_fraction = {"none": 0.0, "top-k": cpu_machine.top_k_slots, "25%": 0.25, "all": 1.0}[slots]
    work = cpu_machine.job(policy, cache_fraction, batch)
    clocked, deeds, _ = simulate(work, work.run.hardware.at("centre"))
    layers, expert_bytes = cpu_machine.spec.layers, cpu_machine.spec.expert_bytes
    told = world(clocked, deeds, work.decisions, layers, expert_bytes)
    measured = work.decisions[2 * layers : (STEPS - 2) * layers]
    assert told.hits == sum(each.hits for each in measured)
    assert told.misses == sum(sum(each.misses.values()) for each in measured)
    copies = sum(len(each.prefetch) + sum(len(wave.demand) for wave in each.waves) for each in measured)
    assert told.bytes_copied == copies * expert_bytes
    assert len(told.step_ns) == STEPS - 4


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_whoever_was_decided_on_is_who_the_slots_hold_when_the_kernels_are_launched(cpu_machine, policy):
    # Events of three tokens through the slots of one: what is prefetched takes slots of earlier waves.
    work = cpu_machine.job(policy, cpu_machine.top_k_slots, BATCH)
    _, deeds, _ = simulate(work, work.run.hardware.at("centre"))
    decided = [[expert for wave in each.waves for expert in wave.execute] for each in work.decisions]
    assert list(map(sorted, deeds.executed)) == list(map(sorted, decided))


def test_the_classes_of_time_are_the_mean_of_the_instrumented_steps(cpu_machine):
    work = cpu_machine.job("lru", 0.25)
    clocked, deeds, _ = simulate(work, work.run.hardware.at("centre"))
    told = world(clocked, deeds, work.decisions, cpu_machine.spec.layers, cpu_machine.spec.expert_bytes)
    shown = clocked.outcomes[-2:]
    classes = [told.attention_ns, told.experts_ns, told.exposed_copy_ns, told.host_ns, told.idle_ns]
    assert sum(classes) == sum(each.end_ns - each.begin_ns for each in shown) / 2
    assert told.attention_ns == sum(each.time.attention_ns for each in shown) / 2


def test_parts_of_experts_are_refused_in_one_line():
    config = RunConfig(
        trace=SHIPPED, model="olmoe-1b-7b", hardware="h200", engine="graph", policy="lru[budget=split]",
        cache_fraction=0.25, warmup_tokens=2, measured_tokens=6,
    )
    with pytest.raises(ConfigError, match=r"lru\[budget=split\]: .* store whole experts") as error:
        job(config, warmup_steps=2, measured_steps=4, instrumented_steps=2)
    assert "\n" not in str(error.value)
