"""Copies of experts: the allotment by hand, the queue of c servers by events, and what engines make of them."""

import heapq
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.catalogue import find
from moesim.decide import Decider, run_without_clock
from moesim.errors import ConfigError
from moesim.events import steps
from moesim.policies.composition import parse
from moesim.replication import BatchForecast, allotted, spread
from moesim.requests.serving import StreamConfig
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.trace_batch import batch_decode
from moesim.trace_synthetic import SyntheticSpec, synthesize
from tests.traces_for_tests import batched_trace, random_trace

LAYERS, EXPERTS, BATCH = 4, 16, 32


@pytest.mark.parametrize(
    ("tokens", "slots", "most", "copies"),
    [
        # two slots are left for 6 : 3 : 1 tokens: 1.2, 0.6 and 0.2 of them, so one and, by remainder, one
        ({0: 6, 1: 3, 2: 1}, 5, 8, {0: 2, 1: 2, 2: 1}),
        # five left for 8 : 2, the second full at two tokens: 4 and 1
        ({3: 8, 5: 2}, 7, 8, {3: 5, 5: 2}),
        # at most three copies: what the first may not have goes to the second, and then nobody grows
        ({3: 8, 5: 2}, 9, 3, {3: 3, 5: 2}),
        # as many slots as experts: one each; fewer: the heaviest
        ({0: 1, 1: 9, 2: 4}, 3, 8, {0: 1, 1: 1, 2: 1}),
        ({0: 1, 1: 9, 2: 4}, 2, 8, {1: 1, 2: 1}),
        # equal loads, one slot over: the lower number
        ({4: 2, 7: 2}, 3, 8, {4: 2, 7: 1}),
    ],
)
def test_slots_are_allotted_in_proportion(tokens, slots, most, copies):
    assert allotted(tokens, slots, most) == copies


@given(
    tokens=st.dictionaries(st.integers(0, 30), st.integers(1, 40), min_size=1, max_size=12),
    slots=st.integers(1, 80), most=st.integers(1, 9),
)
def test_no_slot_is_lost_or_made(tokens, slots, most):
    copies = allotted(tokens, slots, most)
    could = sum(min(most, each) for each in tokens.values())
    assert sum(copies.values()) == (min(slots, could) if slots >= len(tokens) else slots)
    assert all(1 <= copies[e] <= min(most, tokens[e]) for e in copies)
    for expert, count in copies.items():
        assert sum(spread(tokens[expert], count)) == tokens[expert]


@given(tokens=st.integers(1, 60), copies=st.integers(1, 12), service=st.integers(1, 50))
def test_spread_tokens_take_as_long_as_a_queue_with_so_many_servers(tokens, copies, service):
    free = [0] * copies  # every token is taken by the server that is free first
    for _ in range(tokens):
        heapq.heappush(free, heapq.heappop(free) + service)
    assert max(spread(tokens, copies)) * service == max(free)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Top-1 routing of 32 sequences, skewed, as batches; and a model of that shape."""
    folder = tmp_path_factory.mktemp("switch")
    spec = SyntheticSpec(LAYERS, EXPERTS, 1, overlap=0.35, busiest=0.4, decode_tokens=12, requests=BATCH, seed=4)
    trace, _ = synthesize(spec)
    batch_decode(trace, BATCH).save(folder / "batches.safetensors")
    trace.slice(0, 12).save(folder / "single.safetensors")
    model = {
        "name": "tiny-switch", "source": "made for a test", "layers": LAYERS, "experts": EXPERTS, "top_k": 1,
        "hidden": 768, "expert_intermediate": 3072, "expert_matrices": 2, "heads": 12, "kv_heads": 12,
        "head_size": 64, "vocabulary": 32128, "precision": "fp32", "expert_precision": "fp32",
    }
    (folder / "tiny-switch.yaml").write_text(yaml.safe_dump(model))
    engine = yaml.safe_load(Path(find("engines", "graph")).read_text()) | {"start": "all"}
    for kind in ("grouped", "servers"):
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump({**engine, "name": kind, "expert_kernels": kind}))
    return folder


def run(folder, copies, kernels, **more):
    values = {
        "trace": folder / "batches.safetensors", "model": str(folder / "tiny-switch.yaml"), "hardware": "a100-40gb",
        "policy": f"expert-replication[copies={copies}]", "engine": str(folder / f"{kernels}.yaml"),
        "cache_fraction": 1.0, "warmup_tokens": 2 * BATCH, "interval": False,
    }
    return simulate(RunConfig(**(values | more))).row()


def test_copies_gain_nothing_in_a_grouped_kernel_and_much_with_a_server_each(batches):
    grouped = [run(batches, copies, "grouped") for copies in (1, 8)]
    servers = [run(batches, copies, "servers") for copies in (1, 8)]
    assert grouped[1]["tpot_experts_ns"] >= grouped[0]["tpot_experts_ns"]
    assert servers[1]["tpot_experts_ns"] < 0.6 * servers[0]["tpot_experts_ns"]
    assert servers[1]["server_utilisation"] > 1.3 * servers[0]["server_utilisation"]
    assert grouped[0]["server_utilisation"] is None
    for row in (*grouped, *servers):
        assert not row["lossless"]
        assert 0.85 < row["weight_executed"] < 0.95, "recall 0.9 of the router's weight"


def test_a_layer_takes_as_long_as_its_slowest_server(batches):
    # One token at a time and no copies: expert time is the busiest expert's tokens, predicted ones, times one token's.
    row = run(batches, 1, "servers", policy="expert-replication[copies=1,recall=1.0]")
    single = run(batches, 1, "servers", trace=batches / "single.safetensors", warmup_tokens=2)
    one_ns = single["experts_total_ns"] / single["decode_steps"] / LAYERS
    trace = batch_trace(batches)
    slowest = [
        max(Counter(trace.experts[step.rows, layer, 0].tolist()).values())
        for step in list(steps(trace))[2:] for layer in range(LAYERS)
    ]
    assert row["experts_total_ns"] == sum(slowest) * one_ns


def batch_trace(folder):
    from moesim.trace import Trace

    return Trace.load(folder / "batches.safetensors")


def test_slots_of_a_batch_are_filled_while_the_one_before_it_runs(batches):
    trace = batch_trace(batches)
    policy = parse("expert-replication[copies=4]")
    slots = LAYERS * EXPERTS
    decider = Decider(policy, LAYERS, EXPERTS * 4, Capacity(slots), largest_event=EXPERTS)
    forecast = BatchForecast(0.9, 0, 4)
    forecast.slots = EXPERTS
    made = run_without_clock(decider, steps(trace))
    for number, step in enumerate(steps(trace)):
        for layer in range(LAYERS):
            decision = next(made)
            ran = [expert for wave in decision.waves for expert in wave.execute]
            assert decision.prefetch_dropped == 0
            if number == 0:
                assert decision.loads is None
                assert set(ran) == {layer * EXPERTS * 4 + e for e in step.accesses[layer]}, "routed truly"
                continue
            assert decision.misses.total() == 0, "whoever is executed was copied while the batch before ran"
            assert sum(decision.loads.values()) == step.tokens
            assert set(ran) == set(decision.loads)
            tokens = Counter(e for choice in forecast.choices(step, layer) for e in choice)
            held = Counter(expert % (EXPERTS * 4) % EXPERTS for expert in ran)
            assert held == allotted(tokens, EXPERTS, 4)
            assert sum(held.values()) <= EXPERTS


def test_nothing_is_foreseen_of_a_single_sequence(batches):
    row = run(batches, 8, "grouped", trace=batches / "single.safetensors", warmup_tokens=2)
    lru = run(batches, 8, "grouped", trace=batches / "single.safetensors", warmup_tokens=2, policy="lru")
    same = ("tpot_mean_ns", "misses", "hits", "bytes_copied", "prefetches")
    assert [row[name] for name in same] == [lru[name] for name in same]
    assert row["prefetches"] == 0
    assert row["weight_executed"] == 1.0


def test_a_server_each_also_changes_the_time_of_policies_without_copies(batches):
    grouped, servers = (run(batches, 1, engine, policy="lru") for engine in ("grouped", "servers"))
    assert grouped["misses"] == servers["misses"]
    assert servers["tpot_experts_ns"] != grouped["tpot_experts_ns"]
    assert 0 < servers["server_utilisation"] < 1


def test_what_does_not_fit_is_one_line(batches):
    with pytest.raises(ConfigError, match="single sequences"):
        parse("expert-replication[draft=self-draft]")
    with pytest.raises(ConfigError, match="fetched whole; cpu does not"):
        parse("expert-replication[on_miss=cpu]")
    with pytest.raises(ConfigError, match="only the clock forms"):
        run(batches, 8, "grouped", stream=StreamConfig(arrivals_per_s=5.0))
    with pytest.raises(ConfigError, match="drops late guesses"):
        run(batches, 8, "grouped", engine="promoe")
    with pytest.raises(ConfigError, match="1 to 64"):
        parse("expert-replication[copies=0]")
    engine = yaml.safe_load((batches / "servers.yaml").read_text()) | {"start": "each"}
    (batches / "wrong.yaml").write_text(yaml.safe_dump(engine))
    with pytest.raises(ConfigError, match="start must be all"):
        run(batches, 1, "wrong")


def test_the_step_behind_and_before():
    trace = batched_trace(9, batch=3)
    first, second, third = steps(trace)
    assert [first.follows_batch, second.follows_batch, third.follows_batch] == [False, True, True]
    assert first.following().rows == second.rows
    assert first.following().accesses == second.accesses
    assert third.following() is None
    assert not any(step.follows_batch for step in steps(random_trace(5)))
    prompt = replace(batched_trace(6, batch=3), phase=np.repeat(np.array([0, 1], np.uint8), 3))
    assert not list(steps(prompt))[1].follows_batch, "a prompt is no batch to look ahead from"
