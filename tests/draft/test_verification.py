"""Drafting and verifying: every token is kept once, and the limits of acceptance have closed forms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.devices.simulated import SimulatedGPU
from moesim.draft.verification import verification_steps
from moesim.errors import ConfigError
from moesim.events import DECODE, steps
from moesim.model import ModelSpec
from moesim.policies.composition import parse
from moesim.policies.draft.self_draft import SelfDraft
from moesim.replay import Replay
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.plain_hardware import PlainHardware, plain_engine
from tests.traces_for_tests import batched_trace, random_trace

SHIPPED = Path(__file__).parents[2] / "traces" / "reference-16x64.safetensors"
KERNELS_NS = {"attention": 700, "router": 90, "experts": 400, "head": 300}
LAYERS, EXPERTS, TOP_K = 3, 8, 2


def requests_of(lengths, prompt=0, seed=0):
    """Requests of so many decode tokens each, one behind the other."""
    trace = random_trace(sum(lengths), LAYERS, EXPERTS, TOP_K, seed=seed)
    request = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    position = np.concatenate([np.arange(each, dtype=np.uint32) for each in lengths])
    phase = np.where(position < prompt, 0, 1).astype(np.uint8)
    starts = np.append(True, (phase[1:] != 0) | (request[1:] != request[:-1]))
    return replace(trace, request=request, position=position, phase=phase, step=np.cumsum(starts).astype(np.uint32) - 1)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), prompt=st.sampled_from([0, 3]),
    k=st.lists(st.integers(0, 5), min_size=1, max_size=4), p=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_every_decode_token_is_kept_by_exactly_one_step(lengths, prompt, k, p, seed):
    trace = requests_of([each + prompt for each in lengths], prompt)
    turn = iter(k * 100)
    kept = []
    for step in verification_steps(trace, trace.tokens, turn.__next__, SelfDraft(5, p, seed=seed).accepted):
        rows = range(step.rows.start, step.rows.stop)
        if step.phase == DECODE:
            assert len(set(trace.request[step.rows].tolist())) == 1, "no draft crosses a request"
            assert 1 <= step.kept <= step.drafted + 1 == step.tokens
            rows = rows[: step.kept]
        kept += rows
        for layer in range(LAYERS):
            assert set(step.accesses[layer]) == set(trace.experts[step.rows, layer].ravel().tolist())
    assert kept == list(range(trace.tokens))


def test_a_draft_is_as_long_as_the_request_has_tokens():
    trace = requests_of([7, 3])
    window = verification_steps(trace, trace.tokens, lambda: 3, lambda request, position, drafted: drafted)
    assert [step.drafted for step in window] == [3, 2, 2]


def test_acceptance_is_drawn_with_its_probability_and_ends_at_the_first_wrong_draft():
    draft = SelfDraft(k=4, by_position="0.9/0.5", seed=3)
    kept = np.array([draft.accepted(request, position, 4) for request in range(40) for position in range(500)])
    # P(accepted >= j) is the product of the first j probabilities; 5 standard deviations of 20,000 dependent draws
    for ahead, expected in enumerate((0.9, 0.45, 0.225, 0.1125), start=1):
        assert abs((kept >= ahead).mean() - expected) < 0.025
    shorter = [draft.accepted(1, position, 2) for position in range(50)]
    assert shorter == [min(2, draft.accepted(1, position, 4)) for position in range(50)]


def test_what_is_accepted_is_the_same_on_every_machine():
    draft = SelfDraft(k=6, acceptance=0.7, seed=1)
    assert [draft.accepted(0, position, 6) for position in range(0, 60, 5)] == [
        next((j - 1 for j in range(1, 7) if splitmix(1, 0, position + j) >= np.uint64(0.7 * 2**64)), 6)
        for position in range(0, 60, 5)
    ]


def splitmix(seed, request, position):
    """The hash of a place, in numpy's wrapping 64-bit arithmetic (Steele et al. 2014, figure 16)."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for number in (0x61636365, seed, request, position):
            state = (state ^ np.uint64(number)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state


class HeadPerToken(PlainHardware):
    """As plain, with a head that takes its time for every token whose next one is chosen."""

    def kernel_ns(self, kernel, mode, launches):
        return super().kernel_ns(kernel, mode, launches) * (kernel.tokens if kernel.name == "head" else 1)


def timed(trace, k, p, slots=LAYERS * EXPERTS):
    model = ModelSpec(
        name="tiny", source="test", layers=LAYERS, experts=EXPERTS, top_k=TOP_K, hidden=10, expert_intermediate=50,
        heads=1, kv_heads=1, head_size=10, vocabulary=100,
    )
    policy = parse(f"moe-speq[draft=self-draft[k={k},acceptance={p}]]")
    window = verification_steps(trace, trace.tokens, policy.draft.length, policy.draft.accepted) if k else steps(trace)
    figures = HeadPerToken(kernels_ns=KERNELS_NS, enqueue_kernel_ns=0, enqueue_copy_ns=0, read_back_ns=40)
    decider = Decider(policy, LAYERS, EXPERTS, Capacity(slots), largest_event=EXPERTS)
    device, outcomes = SimulatedGPU(figures, plain_engine()), []
    replay = Replay(
        window, decider, device, model, plain_engine(), decider.slots, outcomes.append,
        draft=model.with_experts_in("int4"),
    )
    device.run(replay.program())
    return outcomes


@pytest.mark.parametrize(("k", "p"), [(1, 1.0), (3, 1.0), (4, 0.0), (2, 0.0)])
def test_cycles_without_copies_are_the_sum_of_passes_and_verification(k, p):
    outcomes = timed(requests_of([60]), k, p)
    assert sum(each.step.kept for each in outcomes) == 60
    full = [each for each in outcomes if each.step.drafted == k]
    assert {each.step.kept for each in full} == {k + 1 if p else 1}
    assert len(outcomes) == (-(-60 // (k + 1)) if p else 60)
    layer_ns = KERNELS_NS["attention"] + KERNELS_NS["router"] + KERNELS_NS["experts"]
    pass_ns = LAYERS * layer_ns + KERNELS_NS["head"]
    # Every pass's ids are read while the next runs, the last's alone; the step reads its own per layer and at its end.
    expected = k * pass_ns + 40 + LAYERS * (layer_ns + 40) + (k + 1) * KERNELS_NS["head"] + 40
    resident = [each for each in full if not each.copies]
    assert len(resident) > 5
    assert {each.end_ns - each.begin_ns for each in resident} == {expected}
    assert {each.draft_ns for each in resident} == {k * pass_ns}


def test_copies_of_whom_the_draft_names_are_hidden_behind_its_later_passes():
    # 24 experts, of 3,000 bytes and so 3,002 ns each: the first pass names 6, of which the later passes hide a part.
    first = timed(requests_of([20]), 3, 1.0)[0]
    begun = first.time.exposed_copy_ns
    serial = timed(requests_of([20]), 0, 1.0)[0]
    assert first.copies > serial.copies
    assert begun < first.link_busy_ns


def run(policy, **more):
    values = {
        "trace": SHIPPED, "model": "olmoe-1b-7b", "hardware": "rtx-a6000", "policy": policy, "cache_fraction": 0.5,
        "warmup_tokens": 8, "measured_tokens": 40, "interval": False,
    }
    return simulate(RunConfig(**(values | more))).row()


@pytest.mark.parametrize("draft", ["none", "self-draft[k=0]", "governed-draft[shortest=0,longest=0]"])
def test_no_draft_is_plain_decoding_to_the_bit(draft):
    plain, drafted = run("lru"), run(f"moe-speq[draft={draft}]")
    differ = {name for name in plain if plain[name] != drafted[name]}
    assert differ == {"policy", "configuration", "run_hash"}


@pytest.mark.parametrize("policy", ["moe-speq", "moe-speq[draft=self-draft[k=3,acceptance=0.6]]"])
def test_a_row_counts_kept_tokens_and_says_what_was_drafted(policy):
    row = run(policy)
    assert 32 <= row["tokens_measured"] <= 40  # warm-up ends with a step, not within one
    assert row["tokens_measured"] == row["decode_steps"] + row["draft_accepted_tokens"]
    assert row["stand_in_tokens"] == row["draft_tokens"] - row["draft_accepted_tokens"]
    assert row["accepted_mean_tokens"] == row["draft_accepted_tokens"] / row["decode_steps"]
    assert row["tpot_mean_ns"] * row["tokens_measured"] == pytest.approx(row["decode_total_ns"])
    assert 0 < row["tpot_draft_ns"] < row["tpot_mean_ns"]
    assert row["lossless"]


def test_the_draft_takes_its_bytes_from_the_cache():
    lru, drafted = run("lru"), run("moe-speq")
    model = ModelSpec.load("olmoe-1b-7b")
    int4 = 3 * model.hidden * model.expert_intermediate * 4.5 / 8
    assert drafted["draft_bytes"] == 16 * 64 * int4
    assert lru["slots"] == 512
    assert drafted["slots"] == 512 - 288  # 1,024 experts of 4.5 instead of 16 bits
    assert drafted["vram_bytes"] == lru["vram_bytes"]
    with pytest.raises(ConfigError, match=r"beside its draft is 0 slots"):
        run("moe-speq", cache_fraction=0.25)


def test_batches_are_refused():
    with pytest.raises(ConfigError, match="one sequence"):
        parse("moe-speq").check(batched_trace(9))
    parse("moe-speq[draft=self-draft[k=0]]").check(batched_trace(9))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("moe-speq[acceptance=1.5]", "0 to 1"),
        ("moe-speq[by_position=0.9/x]", "0 to 1"),
        ("moe-speq[draft=self-draft[k=-1]]", "0 to 64"),
        ("moe-speq[precision=int3]", "int3"),
        ("moe-speq[shortest=9]", "0 to longest=8"),
        ("moe-speq[smoothing=0.0]", "smoothing"),
        ("moe-speq[counts=some]", "kept"),
        ("moe-speq[slo_ms=-1.0]", "slo_ms"),
    ],
)
def test_bad_parameters_are_one_line(policy, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(policy)
    assert "\n" not in str(caught.value)


def test_a_governed_draft_and_an_oracle_exclude_each_other():
    with pytest.raises(ConfigError, match="oracle"):
        run("moe-speq[evict=belady]")
    assert run("moe-speq[draft=self-draft[k=2],evict=belady]")["misses_policy"] == 0


@pytest.mark.parametrize("engine", ["graph", "yalis"])
def test_fast_and_simulated_devices_time_drafts_alike(engine):
    policy = "moe-speq[draft=self-draft[k=3,acceptance=0.8]]"
    fast, simulated = (run(policy, engine=engine, device=device) for device in ("fast", "simulated"))
    assert {name for name in fast if fast[name] != simulated[name]} <= {"device", "configuration", "run_hash"}
