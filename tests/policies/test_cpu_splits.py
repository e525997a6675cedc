"""How missing experts are split between CPU and link: against every split there is, and in simulated time."""

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.devices.simulated_cpu import SimulatedGPUAndCPU
from moesim.errors import ConfigError
from moesim.hardware import HardwareSpec
from moesim.model import Kernel
from moesim.policies.composition import parse
from moesim.policies.costs import Costs
from moesim.policies.on_miss.cpu import Cpu
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.plain_hardware import plain_engine
from tests.test_simulated_cpu import PlainHost

SHIPPED = Path(__file__).parents[2] / "traces" / "reference-16x64.safetensors"
SIZE = 1_000_000
"""Bytes of an expert, or nanoseconds on the link."""


def rule(policy, costs):
    made = parse(policy).on_miss
    made.prepare(costs)
    return made


def event(tokens):
    """A step whose layer's expert e has tokens[e] tokens."""
    return SimpleNamespace(tokens_of=lambda layer: dict(enumerate(tokens)))


@given(
    tokens=st.lists(st.integers(1, 12), min_size=1, max_size=7), floor=st.integers(0, 40), each=st.integers(0, 20),
    copy=st.integers(1, 150),
)
def test_fiddler_finds_the_best_of_all_splits(tokens, floor, each, copy):
    costs = Costs(tuple(floor + each * n for n in range(1, 13)), (5,) * 12, copy, 1e9, 2e9)
    missing = range(len(tokens))

    def slower_side(fetched):
        on_cpu = sum(floor + each * tokens[e] for e in missing if e not in fetched)
        return max(on_cpu, (copy + 5) * len(fetched))

    best = min(slower_side(chosen) for count in range(len(tokens) + 1) for chosen in combinations(missing, count))
    fiddler = rule("fiddler", costs)
    fetched = fiddler.fetched(event(tokens), 0, list(missing))
    assert slower_side(fetched) == best
    assert sorted([*fetched, *fiddler.on_cpu(event(tokens), 0, list(missing))]) == list(missing)
    # The public code adds both sides up: each expert by itself.
    cheaper = rule("fiddler[balance=sum]", costs).fetched(event(tokens), 0, list(missing))
    assert cheaper == [e for e in missing if copy + 5 < floor + each * tokens[e]]


def split_ns(hardware, experts, over_link):
    """How long a layer's missing experts take when so many go over the link and the CPU executes the others."""
    device, ends = SimulatedGPUAndCPU(hardware, plain_engine()), []

    def program():
        for expert in range(experts - over_link):
            device.execute(expert, Kernel("cpu expert", 0, SIZE, 1, 1, 0))
        ends.append(device.record(device.cpu))
        for expert in range(over_link):
            device.copy(device.copies, expert, expert, SIZE)
        ends.append(device.record(device.copies))
        yield from device.read_back(ends[0])

    device.run(program())
    device.environment.run()
    return max(event.completed_ns for event in ends)


def split_of(policy, missing, link, host, cpu):
    costs = Costs((round(SIZE * 1e9 / cpu),), (0,), round(SIZE * 1e9 / link), link, host)
    return len(rule(policy, costs).fetched(event([1] * missing), 0, list(range(missing))))


@pytest.mark.parametrize("missing", [1, 2, 3, 5, 8, 16, 40])
@pytest.mark.parametrize("link_share", [0.2, 0.25, 0.5, 0.7])
def test_freetoken_is_the_best_split_where_link_and_cpu_together_fill_the_memory(missing, link_share):
    """The formula's own machine: the CPU takes what the link leaves. Every split is tried in the simulator."""
    link, host = 1e9, 1e9 / link_share
    hardware = PlainHost(link_bytes_per_s=link, host_bytes_per_s=host, cpu_ns={1: round(SIZE * 1e9 / (host - link))})
    times = [split_ns(hardware, missing, over_link) for over_link in range(missing + 1)]
    found = split_of("freetoken", missing, link, host, host - link)
    exact = missing * link_share
    assert abs(found - exact) <= 0.5
    assert abs(times.index(min(times)) - exact) <= 1
    # Rounded to the nearest whole expert: at most half an expert on either side worse than the best.
    half = 0.5 * max(SIZE, SIZE * 1e9 / (host - link))
    assert times[found] <= min(times) + half + 100


@pytest.mark.parametrize(
    ("cpu_share", "too_few"), [(0.15, True), (0.3, True), (0.75, False)], ids=["slowest", "slower", "all that is left"],
)
def test_freetoken_sends_too_little_over_the_link_where_the_cpu_is_the_slower_one(cpu_share, too_few):
    """Bandwidths alone do not say how fast the CPU is: q* does not change with it, the best split does."""
    link, host, missing = 1e9, 4e9, 16
    cpu = host * cpu_share
    hardware = PlainHost(link_bytes_per_s=link, host_bytes_per_s=host, cpu_ns={1: round(SIZE * 1e9 / cpu)})
    times = [split_ns(hardware, missing, over_link) for over_link in range(missing + 1)]
    freetoken, fiddler = (split_of(policy, missing, link, host, cpu) for policy in ("freetoken", "fiddler"))
    assert freetoken == 4
    assert abs(fiddler - times.index(min(times))) <= 1
    assert (times.index(min(times)) > freetoken + 1) == too_few
    assert (times[freetoken] > 1.2 * min(times)) == too_few


def tpot(policy, card, **overrides):
    """Without a cache: every expert is missing."""
    config = RunConfig(
        trace=SHIPPED, model="olmoe-1b-7b", hardware=card, policy=policy, warmup_tokens=8, measured_tokens=24,
        interval=False, hardware_overrides=overrides,
    )
    return simulate(config).row()["tpot_mean_ns"]


@pytest.mark.parametrize("card", ["rtx-4090", "rtx-a6000", "h200", "gh200"])
@pytest.mark.parametrize("balance", ["max", "sum"])
def test_fiddler_is_never_slower_than_one_side_alone_but_for_shared_bandwidth(card, balance):
    hardware = HardwareSpec.load(card).at("centre")
    policy = f"fiddler[balance={balance}]"
    # What a layer pays for having both sides at work: a start-up, a descriptor and an event of its own on each.
    both = 16 * 2 * (hardware.copy_start_up_ns + hardware.copy_descriptor_ns + hardware.event_latency_ns)
    endless = {"host_bytes_per_s": 1e15}
    assert tpot(policy, card, **endless) <= min(tpot(each, card, **endless) for each in ("cpu", "on-demand")) + both
    slowed = max(1.0, (hardware.link_bytes_per_s + hardware.cpu_bytes_per_s) / hardware.host_bytes_per_s)
    assert tpot(policy, card) <= slowed * min(tpot(each, card) for each in ("cpu", "on-demand")) + both


def deferring(tokens, top_k, layers=3, phase=1):
    return SimpleNamespace(gates=lambda layer: tokens, top_k=top_k, layers=layers, phase=phase)


def test_each_tokens_lightest_are_deferred_unless_another_token_protects_them():
    """kt-kernel: the heaviest top_k - d of each token are protected, for all tokens of the batch."""
    tokens = [[(4, 0.5), (1, 0.3), (7, 0.1), (2, 0.1)], [(7, 0.6), (3, 0.2), (5, 0.1), (1, 0.1)]]
    on_cpu = [1, 7, 2, 3, 5]
    assert Cpu(deferred=2).deferred(deferring(tokens, 4), 0, on_cpu) == [2, 5]
    assert Cpu(deferred=4).deferred(deferring(tokens, 4), 0, on_cpu) == on_cpu
    assert Cpu(deferred=9).deferred(deferring(tokens, 4), 1, on_cpu) == on_cpu
    assert not Cpu(deferred=2).deferred(deferring(tokens, 4), 2, on_cpu), "nothing comes after the last layer"
    assert not Cpu(deferred=2).deferred(deferring(tokens, 4, phase=0), 0, on_cpu), "a prefill is computed truly"
    assert not Cpu().deferred(deferring(tokens, 4), 0, on_cpu)
    assert Cpu().lossless
    assert not Cpu(deferred=1).lossless


@pytest.mark.parametrize("policy", ["cpu[deferred=-1]", "fiddler[balance=mean]", "cpu[evict=static[place=odd]]"])
def test_parameters_that_mean_nothing_are_refused(policy):
    with pytest.raises(ConfigError, match=r"policy: .*(expected|known)"):
        parse(policy)


def test_deferral_hides_the_cpu_behind_the_next_layers_attention():
    """Each of 16 layers but the last saves at most its attention; no more experts and no fewer are executed."""
    rows = {
        policy: simulate(RunConfig(
            trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-a6000", policy=policy, cache_fraction=0.25,
            warmup_tokens=8, measured_tokens=24, interval=False,
        )).row()
        for policy in ("cpu", "ktransformers")
    }
    late, in_time = rows["ktransformers"], rows["cpu"]
    assert late["experts_on_cpu"] == in_time["experts_on_cpu"]
    assert late["cpu_utilisation"] > in_time["cpu_utilisation"]
    assert late["tpot_mean_ns"] < in_time["tpot_mean_ns"]
    assert not late["lossless"]
    assert 0.8 < late["weight_executed"] < 1


def test_a_profile_that_says_nothing_of_the_cpu_is_refused_in_one_line(tmp_path):
    card = (Path(__file__).parents[2] / "configs" / "hardware" / "rtx-3090.yaml").read_text()
    (tmp_path / "bare.yaml").write_text(card[: card.index("  host_bytes_per_s")])
    assert tpot("lru", str(tmp_path / "bare.yaml")) == tpot("lru", "rtx-3090")
    with pytest.raises(ConfigError) as refused:
        tpot("fiddler", str(tmp_path / "bare.yaml"))
    assert str(refused.value) == (
        "hardware rtx-3090: no figure host_bytes_per_s: policy fiddler executes experts on the CPU"
    )


def test_the_fast_device_refuses_what_shares_bandwidth():
    with pytest.raises(ConfigError, match="device fast: policy fiddler executes experts on the CPU"):
        simulate(RunConfig(
            trace=SHIPPED, model="olmoe-1b-7b", hardware="h200", policy="fiddler", device="fast", measured_tokens=4,
        ))
