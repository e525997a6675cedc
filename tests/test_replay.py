"""The replay loop: against an explicit serial sum, and what must be conserved whatever the policy."""

from pathlib import Path

import pytest

import moesim.one_replay
import moesim.window
from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.devices.simulated import SimulatedGPU
from moesim.events import steps
from moesim.model import ModelSpec
from moesim.policies.composition import known_policies, parse
from moesim.replay import Replay
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.window import recorded_decisions
from tests.oracles.serial_time import on_demand_token_ns
from tests.plain_hardware import PlainHardware, plain_engine
from tests.traces_for_tests import random_trace

SHIPPED = Path(__file__).parents[1] / "traces" / "reference-16x64.safetensors"
SCORED = SHIPPED.with_name("reference-16x64-scores.safetensors")
KERNELS_NS = {"attention": 700, "router": 90, "experts": 400, "head": 300}


def test_on_demand_decoding_is_the_serial_sum():
    layers, experts, top_k = 3, 8, 2
    trace = random_trace(9, layers, experts, top_k, seed=4)
    model = ModelSpec(
        name="tiny",
        source="test",
        layers=layers,
        experts=experts,
        top_k=top_k,
        hidden=10,
        expert_intermediate=50,
        heads=1,
        kv_heads=1,
        head_size=10,
        vocabulary=100,
    )
    figures = PlainHardware(
        copy_start_up_ns=150,
        copy_descriptor_ns=27,
        enqueue_copy_ns=11,
        enqueue_kernel_ns=13,
        record_event_ns=2,
        wait_event_ns=3,
        read_back_ns=240,
        kernels_ns=KERNELS_NS,
    )
    engine = plain_engine()
    outcomes = []
    decider = Decider(parse("on-demand"), layers, experts, Capacity(2 * top_k, workspace=True), largest_event=top_k)
    device = SimulatedGPU(figures, engine)
    device.run(Replay(steps(trace), decider, device, model, engine, decider.slots, outcomes.append).program())
    expected = on_demand_token_ns(
        layers=layers,
        copies_bytes=(model.expert_bytes,) * top_k,
        bytes_per_s=10**9,
        copy_start_up_ns=figures.copy_start_up_ns,
        copy_descriptor_ns=figures.copy_descriptor_ns,
        enqueue_copy_ns=figures.enqueue_copy_ns,
        host_before_first_copy_ns=0,
        host_after_last_copy_ns=figures.record_event_ns + figures.wait_event_ns,
        enqueue_launch_ns=figures.enqueue_kernel_ns,
        before_router_ns=(KERNELS_NS["attention"], KERNELS_NS["router"]),
        experts_ns=(KERNELS_NS["experts"],),
        head_ns=(KERNELS_NS["head"],),
        read_back_ns=figures.read_back_ns,
    )
    assert [each.end_ns - each.begin_ns for each in outcomes] == [expected] * trace.tokens
    assert all(each.copies == layers * top_k for each in outcomes)


def test_only_the_last_experts_of_a_token_are_not_hidden_behind_speculated_copies():
    # Slots for two events: copies for layer l + 1 overwrite what layer l - 1 read, never what layer l still reads.
    model = ModelSpec(
        name="tiny", source="test", layers=4, experts=8, top_k=2, hidden=10, expert_intermediate=50, heads=1,
        kv_heads=1, head_size=10, vocabulary=100,
    )
    trace = random_trace(6, 4, 8, 2, seed=4)
    engine = plain_engine().model_copy(update={"read_back": "overlapped"})
    policy = "speculate-and-execute[predictor=synthetic]"

    def token_ns(experts_ns):
        outcomes = []
        decider = Decider(parse(policy), 4, 8, Capacity(4, workspace=True), largest_event=2)
        device = SimulatedGPU(PlainHardware(kernels_ns=KERNELS_NS | {"experts": experts_ns}), engine)
        device.run(Replay(steps(trace), decider, device, model, engine, decider.slots, outcomes.append).program())
        return [each.end_ns - each.begin_ns for each in outcomes]

    brief, longer = token_ns(400), token_ns(1000)
    assert [b - a for a, b in zip(brief, longer, strict=True)] == [600] * trace.tokens


def run(policy="lru", **more):
    values = {
        "trace": SHIPPED,
        "model": "olmoe-1b-7b",
        "hardware": "rtx-a6000",
        "policy": policy,
        "cache_fraction": 0.25,
        "warmup_tokens": 8,
        "measured_tokens": 24,
        "interval": False,
    }
    return simulate(RunConfig(**(values | more))).row()


@pytest.mark.parametrize("engine", ["yalis", "graph", "eager"])
@pytest.mark.parametrize("policy", known_policies())
def test_time_bytes_and_accesses_are_conserved(policy, engine):
    drafts = parse(policy).draft.longest > 0
    row = run(
        policy, engine=engine, trace=SCORED if parse(policy).route.looks_at_cache else SHIPPED,
        cache_fraction=0.5 if drafts else 0.25,
    )
    classes = ("attention", "experts", "exposed_copy", "host", "idle")
    assert sum(row[f"{name}_total_ns"] for name in classes) == row["decode_total_ns"]
    assert sum(row[f"tpot_{name}_ns"] for name in classes) == pytest.approx(row["tpot_mean_ns"], rel=1e-12)
    assert row["tpot_mean_ns"] * row["tokens_measured"] == pytest.approx(row["decode_total_ns"])
    accesses = row["hits"] + row["misses"]
    fewer = drafts or parse(policy).rules["route"][0] == "adaptive-top-1"
    assert accesses < 24 * 16 * 8 if fewer else accesses == 24 * 16 * 8
    assert sum(row[name] for name in row if name.startswith("misses_")) == row["misses"]
    fetched = row["misses"] - row["stood_in"] - row["experts_on_cpu"]
    assert 0 <= row["cpu_busy_ns"] <= row["decode_total_ns"]
    assert (row["cpu_busy_ns"] > 0) == (row["experts_on_cpu"] > 0) == (parse(policy).uses_cpu)
    if row["copies_bottom"] == 0:  # bytes of parts: tests/policies/test_split.py
        assert row["copies"] == fetched + row["prefetches"]
        smaller_bytes = row["expert_bytes"] - (row["expert_low_bytes"] or row["expert_bytes"])
        assert row["bytes_copied"] == row["copies"] * row["expert_bytes"] - row["copies_low"] * smaller_bytes
    assert row["tpot_mean_ns"] >= row["link_floor_ns"]
    if policy != "expert-replication":  # which routes single sequences truly
        assert row["lossless"] == (row["weight_executed"] == 1.0 and row["low_precision"] is None)


@pytest.mark.parametrize("policy", ["lru", "least-stale[key=left-first]", "speculate-and-execute", "belady"])
def test_decisions_played_back_are_the_policy_at_work(policy, monkeypatch):
    played = run(policy)
    monkeypatch.setattr(moesim.one_replay, "RECORDED_TOKENS", 0)
    recorded_decisions.cache_clear()
    assert run(policy) == played
    assert recorded_decisions.cache_info().misses == 0


def test_no_cache_is_on_demand_and_everything_resident_never_copies():
    empty, demand = run("lru", cache_fraction=0.0), run("on-demand")
    same = ("tpot_mean_ns", "ttft_mean_ns", "hits", "misses", "bytes_copied")
    assert [empty[name] for name in same] == [demand[name] for name in same]
    assert run("all-resident")["bytes_copied"] == 0


def test_an_endless_link_leaves_the_time_of_all_experts_resident():
    free = dict.fromkeys(
        (
            "copy_start_up_ns",
            "copy_descriptor_ns",
            "enqueue_copy_ns",
            "record_event_ns",
            "wait_event_ns",
            "read_back_ns",
        ),
        0,
    )
    endless = {**free, "link_bytes_per_s": 1e20, "enqueue_kernel_ns": 0}
    resident = run("all-resident", hardware_overrides=endless)["tpot_mean_ns"]
    assert run("on-demand", hardware_overrides=endless)["tpot_mean_ns"] == resident


def test_a_row_says_when_only_some_kernels_were_measured(tmp_path):
    head = ModelSpec.load("olmoe-1b-7b").head_kernel(1)
    card = (Path(__file__).parents[1] / "configs" / "hardware" / "rtx-a6000.yaml").read_text()
    row = f"{{kernel: head, mode: eager, hbm_bytes: {head.hbm_bytes}, experts: 0, tokens: 1, "
    (tmp_path / "card.yaml").write_text(f"{card}kernels:\n  - {row}ns: 9000, low_ns: 8000, high_ns: 9500}}\n")
    assert run("lru", hardware=str(tmp_path / "card.yaml"))["kernel_times"] == "measured and roofline"
    assert run("lru")["kernel_times"] == "roofline"


def test_a_faster_link_is_never_slower():
    times = [run("lru", hardware_overrides={"link_bytes_per_s": rate})["tpot_mean_ns"] for rate in (5e9, 20e9, 80e9)]
    assert times == sorted(times, reverse=True)


def test_the_public_branch_of_yalis_never_prefetches_the_last_layer():
    engines = ("yalis", "yalis-public")
    whole, public = (run("speculate-and-execute", engine=name, cache_fraction=0.0) for name in engines)
    assert public["bytes_copied"] * 16 == whole["bytes_copied"] * 15
    whole, public = (run("on-demand", engine=name) for name in engines)
    assert public["bytes_copied"] == whole["bytes_copied"]


def test_prefill_streams_whole_layers_where_the_slots_hold_two():
    streamed = run("lru", cache_fraction=0.25, warmup_tokens=0)
    assert streamed["prefill_bytes_copied"] % streamed["expert_bytes"] == 0
    small = run("lru", cache_fraction=0.1, warmup_tokens=0)  # 102 slots: not two layers of 64
    assert small["prefill_misses"] * small["expert_bytes"] == small["prefill_bytes_copied"]
    assert streamed["prefill_misses"] < small["prefill_misses"]


@pytest.mark.parametrize(("policy", "open_loop"), [
    ("speculate-and-execute", True), ("speculate-and-execute[predictor=synthetic]", True),
    ("prefetch-and-refetch", False), ("cache-prior", False), ("specmd-drop", False),
])
def test_only_what_executes_predictions_is_open_loop(policy, open_loop):
    trace = SCORED if policy == "cache-prior" else SHIPPED
    assert run(policy, trace=trace, measured_tokens=2)["open_loop"] is open_loop


def test_a_window_too_long_for_its_optimum_says_so_and_counts_the_policys_misses_as_capacity(monkeypatch):
    short = run("lru", warmup_tokens=0)
    assert short["optimum_known"]
    assert short["misses_policy"] > 0
    monkeypatch.setattr(moesim.window, "OPTIMUM_ACCESSES", 1000)
    recorded_decisions.cache_clear()
    long = run("lru", warmup_tokens=0)
    assert not long["optimum_known"]
    assert long["misses_policy"] == 0
    assert long["misses_capacity"] == short["misses_capacity"] + short["misses_policy"]
    assert long["tpot_mean_ns"] == short["tpot_mean_ns"]
