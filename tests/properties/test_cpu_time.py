"""What must hold of a run with experts on the CPU, whatever the trace, the machine and the policy."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.cpu_experts import CpuExperts
from moesim.decide import Decider
from moesim.devices.simulated_cpu import SimulatedGPUAndCPU
from moesim.events import steps
from moesim.model import ModelSpec
from moesim.policies.composition import parse
from moesim.policies.costs import Costs
from moesim.replay import Replay
from tests.plain_hardware import PlainHardware, plain_engine
from tests.properties.runs import COSTS, KERNELS_NS, largest_event, traces

POLICIES = ("cpu", "cpu[deferred=1]", "fiddler", "freetoken", "llama-cpp", "prefetch-and-refetch[on_miss=fiddler]")
EXPERT_BYTES = 3 * 10 * 50 * 2
few = settings(max_examples=12)


@dataclass(frozen=True)
class Host(PlainHardware):
    """A machine whose CPU takes `cpu_ns` for each token of an expert."""

    host_bytes_per_s: float = 1e9
    cpu_ns: int = 100

    def cpu_expert_ns(self, kernel):
        return self.cpu_ns * kernel.tokens


@st.composite
def hosts(draw):
    costs = {name: draw(st.integers(0, 300)) for name in COSTS}
    rate = draw(st.sampled_from([1e8, 1e9, 7e9]))
    return Host(
        link_bytes_per_s=rate, host_bytes_per_s=rate * draw(st.sampled_from([1, 1.3, 50])),
        cpu_ns=draw(st.sampled_from([20, 900, 20_000])), kernels_ns=KERNELS_NS, **costs,
    )


def timed(trace, policy, capacity, hardware, engine):
    """What every step did and when, and the device at the end."""
    model = ModelSpec(
        name="tiny", source="test", layers=trace.layers, experts=trace.n_experts, top_k=trace.top_k, hidden=10,
        expert_intermediate=50, heads=1, kv_heads=1, head_size=10, vocabulary=100,
    )
    copy_ns = round(EXPERT_BYTES * 1e9 / hardware.link_bytes_per_s)
    costs = Costs(
        tuple(hardware.cpu_ns * n for n in range(1, 40)), (400,) * 39, copy_ns, hardware.link_bytes_per_s,
        hardware.host_bytes_per_s,
    )
    decider = Decider(
        parse(policy), trace.layers, trace.n_experts, capacity, largest_event=largest_event(trace), costs=costs
    )
    device, outcomes = SimulatedGPUAndCPU(hardware, engine), []
    cpu = CpuExperts(device, model)
    replay = Replay(steps(trace), decider, device, model, engine, decider.slots, outcomes.append, cpu=cpu)
    device.run(replay.program())
    device.environment.run()
    return outcomes, device


@few
@given(trace=traces(), machine=hosts(), pieces=st.integers(1, 3), overlapped=st.booleans())
@pytest.mark.parametrize("policy", POLICIES)
def test_time_bytes_and_experts_are_conserved(policy, trace, machine, pieces, overlapped):
    if "prefetch" in policy and not trace.predicted:
        return
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    engine = plain_engine(copies_per_expert=pieces)
    if overlapped:
        engine = engine.model_copy(update={"read_back": "overlapped", "start": "each"})
    outcomes, device = timed(trace, policy, capacity, machine, engine)
    assert len(outcomes) == sum(1 for _ in steps(trace))
    read_bytes = copied_bytes = 0
    for step, outcome in zip(steps(trace), outcomes, strict=True):
        assert outcome.time.total_ns == outcome.end_ns - outcome.begin_ns
        assert min(getattr(outcome.time, name) for name in outcome.time.__slots__) >= 0
        assert outcome.cpu_busy_ns <= outcome.end_ns - outcome.begin_ns
        for decision in outcome.decisions:
            executed = [expert for wave in decision.waves for expert in wave.execute]
            assert sorted([*executed, *decision.on_cpu]) == sorted(
                decision.layer * trace.n_experts + expert for expert in step.accesses[decision.layer]
            ), "every expert is executed once, on one side"
            copied_bytes += EXPERT_BYTES * (sum(len(wave.demand) for wave in decision.waves) + len(decision.prefetch))
            read_bytes += EXPERT_BYTES * len(decision.on_cpu)
        least = sum(machine.cpu_ns for decision in outcome.decisions for _ in decision.on_cpu)
        assert outcome.cpu_busy_ns >= least, "an expert is never faster than alone"
    # Up to a nanosecond of each flow is lost to rounding: of the link's rate, or of an expert's own.
    flows = pieces * copied_bytes / EXPERT_BYTES + read_bytes / EXPERT_BYTES
    slack = flows * max(machine.link_bytes_per_s, EXPERT_BYTES * 1e9 / machine.cpu_ns) / 1e9 + 1
    assert device.host_memory.moved_bytes == pytest.approx(copied_bytes + read_bytes, abs=slack)


@few
@given(trace=traces(), machine=hosts())
@pytest.mark.parametrize("policy", ["cpu", "cpu[deferred=1]", "fiddler"])
def test_more_host_memory_is_never_slower(policy, trace, machine):
    """Without start-ups, for a copy that ends sooner may let the engine fall idle. These rules ignore the memory."""
    capacity = Capacity(max(largest_event(trace), trace.layers * trace.n_experts // 3))
    ends = []
    for share in (1.0, 1.5, 1e6):
        hardware = replace(machine, copy_start_up_ns=0, host_bytes_per_s=machine.link_bytes_per_s * share)
        outcomes, _ = timed(trace, policy, capacity, hardware, plain_engine())
        ends.append(outcomes[-1].end_ns)
    assert ends == sorted(ends, reverse=True)
