"""Experts in two parts: a layer worked by hand, whole experts in as many slots, and what must be conserved."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity, Memory
from moesim.compiled.run import is_compiled
from moesim.decide import Decider, run_without_clock
from moesim.decide_parts import PartsDecider
from moesim.devices.fast import FastGPU
from moesim.devices.simulated import SimulatedGPU
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import UseList, steps
from moesim.model import ModelSpec
from moesim.parts import Parts
from moesim.policies.composition import parse
from moesim.replay import Replay
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.timeline import Timeline
from tests.plain_hardware import PlainHardware, plain_engine
from tests.policies.scanned import with_scores
from tests.policies.test_contract import check_every_event, scored_trace
from tests.random_machines import ENGINES, HARDWARE, MODEL
from tests.test_replay import SHIPPED
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace

POLICIES = (
    "lru", "lcp", "fifo", "belady", "adapmoe-top-1", "pre-gated", "specmd-overfetch[predictor=synthetic[recall=0.5]]",
    "static-frequency", "cache-prior", f"resident-execute[predictor={PREDICTOR}]",
    f"speculate-and-execute[predictor={PREDICTOR}]",
)


def tops(slots, bottoms, **more):
    return Capacity(slots, top_share=0.5, bottom_slots=bottoms, **more)


# ---- time


ONE_LAYER = ModelSpec(
    name="one layer", source="test", layers=1, experts=4, top_k=2, hidden=10, expert_intermediate=5, heads=1,
    kv_heads=1, head_size=10, vocabulary=100,
)
"""An expert has 300 bytes."""


def hit_and_miss(capacity, start="all", share=0.5):
    """Slices of the second of two tokens, by the instant at which it begins: expert 0 is hit, expert 2 missed."""
    trace = random_trace(2, 1, 4, 2)
    trace.experts[:] = [[[0, 1]], [[0, 2]]]
    figures = PlainHardware(
        enqueue_copy_ns=0, enqueue_kernel_ns=0, kernels_ns={"attention": 20, "router": 5, "head": 9}
    )
    engine = plain_engine().model_copy(update={"start": start})
    decider = (PartsDecider if capacity.bottom_slots else Decider)(parse("lru"), 1, 4, capacity, largest_event=2)
    drawn, outcomes = Timeline(4, layers=1), []
    device = SimulatedGPU(figures, engine, drawn)
    versions = Parts(ONE_LAYER, top_share=share) if capacity.bottom_slots else None
    device.run(
        Replay(
            steps(trace), decider, device, ONE_LAYER, engine, decider.slots, outcomes.append, versions=versions
        ).program()
    )
    begin = outcomes[1].begin_ns
    slices = [
        (each.track, each.start_ns - begin, each.end_ns - begin) for each in drawn.between(begin, outcomes[1].end_ns)
        if each.track in ("compute", "link")
    ]
    copies = sorted((start, end) for track, start, end in slices if track == "link")
    kernels = [(start, end) for track, start, end in slices if track == "compute"][2:-1]
    return copies, kernels, outcomes[1].end_ns - begin


def test_a_hit_and_a_miss_by_hand():
    """Attention 20, router 5, ids on the host at 32; a copy takes 10 if the link was idle, 2, and its bytes."""
    copies, kernels, total = hit_and_miss(tops(2, 2))
    # The top of 2; the bottoms of 0 and 2, behind each other.
    assert copies == [(32, 194), (194, 346), (346, 498)]
    # The top of 0 waits for nothing, that of 2 for its copy, both bottoms for theirs: one event for both.
    assert kernels == [(32, 182), (194, 344), (498, 798)]
    assert total == 798 + 9 + 7


def test_whole_experts_by_hand():
    copies, kernels, total = hit_and_miss(Capacity(2))
    assert copies == [(32, 344)]
    assert kernels == [(344, 944)]
    assert total == 944 + 9 + 7


def test_with_an_event_for_each_copy_every_part_runs_as_it_comes():
    copies, kernels, _ = hit_and_miss(tops(2, 2), start="each")
    assert copies == [(32, 194), (194, 346), (346, 498)]
    assert kernels == [(32, 182), (194, 344), (346, 496), (498, 648)]


def test_one_workspace_slot_is_written_when_it_has_been_read():
    """The top is 30 bytes, so the bottom's kernel is what the next bottom waits for."""
    copies, kernels, _ = hit_and_miss(Capacity(2, top_share=0.1, bottom_slots=1), share=0.1)
    # The bottom of 0 runs from 314 to 584; that of 2 takes its slot then, over a link that has fallen idle.
    assert copies == [(32, 314), (314, 346), (584, 866)]
    assert kernels == [(32, 62), (314, 584), (584, 614), (866, 1136)]


@given(
    hardware=HARDWARE, engine=ENGINES, policy=st.sampled_from(POLICIES), slots=st.integers(2, 24),
    bottoms=st.integers(1, 8), share=st.sampled_from([0.1, 0.5, 0.9]), seed=st.integers(0, 1000),
    prompt=st.integers(0, 5), batch=st.booleans(),
)
@settings(max_examples=100)
def test_both_devices_time_parts_alike(hardware, engine, policy, slots, bottoms, share, seed, prompt, batch):
    composed = parse(policy)
    if batch and not hasattr(composed.route, "foresight") and not hasattr(composed.prefetch, "foresight"):
        trace = with_scores(batched_trace(15, 3, 8, 2, dropped=0.2, seed=seed))
    else:
        trace = scored_trace(12, 3, 8, 2, prompt=prompt, seed=seed)
    timed = []
    for make in (FastGPU, SimulatedGPU):
        device, outcomes = make(hardware, engine), []
        decider = new_decider(policy, trace, Capacity(slots, top_share=share, bottom_slots=bottoms))
        device.run(
            Replay(
                steps(trace), decider, device, MODEL, engine, decider.slots, outcomes.append, None,
                composed.executed_predictor, versions=Parts(MODEL, top_share=share),
            ).program()
        )
        timed.append([(each.end_ns, each.time, each.copies, each.copies_low, each.link_busy_ns) for each in outcomes])
    assert timed[0] == timed[1]


# ---- decisions


def new_decider(policy, trace, capacity, **more):
    composed = parse(policy)
    future = UseList(steps(trace), trace.layers, trace.n_experts) if composed.oracle else None
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    return (PartsDecider if capacity.bottom_slots else Decider)(
        composed, trace.layers, trace.n_experts, capacity, largest_event=largest, future=future, **more
    )


def cache_of(decision):
    """What happened to the cache, whatever the order of waves."""
    demand = [(copy.expert, copy.slot, copy.displaced) for wave in decision.waves for copy in wave.demand]
    executed = [expert for wave in decision.waves for expert in wave.execute]
    ahead = [(copy.expert, copy.slot, copy.displaced) for copy in decision.prefetch]
    return decision.hits, decision.misses, demand, executed, ahead


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prompt", [0, 6])
def test_the_cache_is_that_of_whole_experts_in_as_many_slots(policy, prompt):
    trace = scored_trace(40, 3, 8, 2, prompt=prompt, seed=11)
    for slots in (2, 5, 12, 24):
        whole, parted = (
            [cache_of(each) for each in run_without_clock(
                new_decider(policy, trace, capacity, stream_prefill=True), steps(trace))]
            for capacity in (Capacity(slots), tops(slots, 3))
        )
        assert parted == whole


def check_bottoms(policy, trace, capacity, foreseen_late):
    """What lies in the workspace when kernels are launched, from the copies alone; returns copies and uses of bottoms.

    `foreseen_late`: prefetches are enqueued behind the last wave's kernels, as an engine with overlapped reads does.
    """
    decider = new_decider(policy, trace, capacity, stream_prefill=True)
    first_bottom = trace.layers * trace.n_experts
    first_slot = decider.slots - capacity.bottom_slots
    holds, copied, used, unused = {}, 0, 0, 0

    def take(copies):
        for copy in copies:
            assert first_slot <= copy.slot < decider.slots
            assert holds.get(copy.slot) != copy.expert, "copies what is there"
            holds[copy.slot] = copy.expert
        return len(copies)

    for step in steps(trace):
        decider.begin(step)
        for layer in range(trace.layers):
            decision = decider.decide(step, layer)
            unused += decision.bottoms_unused
            for copy in decision.prefetch_bottoms:
                assert (copy.expert - first_bottom) // trace.n_experts > layer, "before its layer"
            for number, wave in enumerate(decision.waves):
                copied += take(wave.bottoms)
                last = number + 1 == len(decision.waves)
                if last and not foreseen_late:
                    copied += take(decision.prefetch_bottoms)
                assert len(wave.bottom_slots) == len(wave.execute) == len(set(wave.bottom_slots))
                for expert, slot in zip(wave.execute, wave.bottom_slots, strict=True):
                    assert holds.pop(slot) == first_bottom + expert, "the kernel reads what the slot holds"
                    used += 1
                if last and foreseen_late:
                    copied += take(decision.prefetch_bottoms)
            if not decision.waves:
                copied += take(decision.prefetch_bottoms)
            resident = {e for pool in decider._pools for e in pool.slot_of}
            assert all(copy.expert - first_bottom in resident for copy in decision.prefetch_bottoms)
            decider.finish(layer)
            holds = {slot: e for slot, e in holds.items() if (e - first_bottom) // trace.n_experts != layer}
    waiting = len(decider._bottoms._foreseen)
    assert copied == used + unused + waiting
    return copied, used


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1), prompt=st.sampled_from([0, 6]), slots=st.sampled_from([2, 6, 16]),
    bottoms=st.integers(1, 9), per_layer=st.booleans(), late=st.booleans(),
)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_kernel_finds_its_bottom(policy, seed, prompt, slots, bottoms, per_layer, late):
    trace = scored_trace(14, 3, 8, 2, prompt=prompt, seed=seed)
    check_bottoms(policy, trace, tops(slots, bottoms, per_layer=per_layer), late)


@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), prompt=st.sampled_from([0, 6]))
@pytest.mark.parametrize("policy", POLICIES)
def test_the_contract_holds_for_tops(policy, seed, prompt):
    trace = scored_trace(14, 3, 8, 2, prompt=prompt, seed=seed)
    for slots in (2, 8, 24):
        check_every_event(policy, trace, tops(slots, 4))


# ---- whole rows


CONFIG = RunConfig(
    trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-4090", policy="lru", cache_fraction=0.25, context_tokens=256,
    interval=False, warmup_tokens=8, measured_tokens=40,
)


def row(policy, **more):
    return simulate(CONFIG.model_copy(update={"policy": policy, **more})).row()


def test_whole_experts_are_a_share_of_one():
    told = ("policy", "configuration", "run_hash")
    first, second = ({key: value for key, value in row(policy).items() if key not in told}
                     for policy in ("lru", "lru[budget=split[share=1.0]]"))
    assert first == second


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
@pytest.mark.parametrize("policy", ["lcp", "lru[prefetch=predicted[predictor=synthetic[recall=0.9]]]"])
def test_bytes_and_memory_are_conserved(policy, share):
    name, bracket, rest = policy.partition("[")
    got = row(f"{name}[{rest[:-1] + ',' if bracket else ''}budget=split[share={share}]]")
    expert = got["expert_bytes"]
    top = -int(-expert * share // 1)
    bottom = expert - top
    accesses = got["hits"] + got["misses"]
    assert accesses == 40 * 16 * 8
    assert got["copies_bottom"] >= accesses
    assert got["bytes_copied"] == (got["copies"] - got["copies_bottom"]) * top + got["copies_bottom"] * bottom
    if policy == "lcp":
        assert got["bytes_copied"] == got["hits"] * bottom + got["misses"] * expert
    else:
        # Who is foreseen in the last measured token has been used by then: every bottom copied is used or wasted.
        unused = got["copies_bottom"] - accesses
        tops_unused = got["copies"] - got["copies_bottom"] - got["misses"] - got["prefetches_useful"]
        assert unused > tops_unused > 0
        assert got["prefetch_wasted_bytes"] == tops_unused * top + unused * bottom
    assert 256 * expert - top < got["slots"] * top + got["slots_bottom"] * bottom <= 256 * expert
    assert 0 <= row("lru")["vram_bytes"] - got["vram_bytes"] < top
    assert got["lossless"]


def test_machine_code_leaves_parts_to_the_loop():
    policy, engine = parse("lru[budget=split[share=0.5]]"), EngineSpec.load("yalis")
    assert not is_compiled(policy, tops(200, 16), engine)


@pytest.mark.parametrize(
    ("policy", "more", "rule"),
    [("lru[budget=split[share=0.0]]", {}, "above 0"), ("lru[budget=split[bottoms=-1]]", {}, "or more"),
     ("lru[budget=split[share=0.5]]", {"cache_fraction": 0.01}, "fewer than its top-k"),
     ("fiddler[budget=split]", {}, "do not go with experts on the CPU"),
     ("moe-speq[budget=split]", {"cache_fraction": 0.5}, "do not go with a draft"),
     ("expert-replication[budget=split]", {}, "do not go with copies of an expert"),
     ("lru[budget=split,prefetch=next-batch]", {}, "do not go with prefetches for the next batch"),
     ("lru[budget=split]", {"host_cache_fraction": 0.5}, "do not go with experts on disk"),
     ("pre-gated[budget=split]", {"engine": "promoe"}, "late guesses"),
     ("hobbit[budget=split]", {}, "two-precisions")],
)
def test_what_does_not_fit_together_is_said_in_one_line(policy, more, rule):
    with pytest.raises(ConfigError, match=rule) as error:
        row(policy, **more)
    assert "\n" not in str(error.value)


def test_the_workspace_is_paid_from_the_memory():
    trace = random_trace(10, 4, 8, 2)
    memory = Memory(8, 4, 8, 2, 1000, 1000, trace)
    rule = parse("lru[budget=split[share=0.5]]").budget
    # 8,000 bytes, less 4 bottoms of 500
    assert rule.divide(memory) == tops(12, 4)
    assert rule.divide(replace(memory, per_layer=True)) == tops(3, 4, per_layer=True)
    assert parse("lru[budget=split[share=0.25,bottoms=2]]").budget.divide(memory) == Capacity(
        26, top_share=0.25, bottom_slots=2
    )
