"""A trace, a policy and a machine put together by hand: what the properties are about."""

from dataclasses import fields, replace

import numpy as np
from hypothesis import strategies as st

from moesim.decide import Decider, run_without_clock
from moesim.devices.simulated import SimulatedGPU
from moesim.events import UseList, steps
from moesim.model import ModelSpec
from moesim.policies.composition import parse
from moesim.replay import Replay
from moesim.trace import Prediction
from tests.plain_hardware import PlainHardware, plain_engine
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace

COSTS = [field.name for field in fields(PlainHardware) if field.name.endswith("_ns") and field.name != "kernels_ns"]
NO_COSTS = replace(PlainHardware(), **dict.fromkeys(COSTS, 0))
"""Nothing but kernels and the bytes on the link takes time."""
KERNELS_NS = {"attention": 700, "router": 90, "experts": 400, "head": 300}

WITHOUT_PREFETCH = (
    "lru", "lfu", "fifo", "belady",
    *(f"least-stale[key={key}]" for key in ("insertion", "layer", "left-first", "cyclic")),
)
WITH_PREFETCH = ("prefetch-and-refetch", "speculate-and-execute", "resident-execute")


@st.composite
def traces(draw):
    """Decoding one by one, behind a prompt or in batches; some choices absent; two to four layers."""
    seed = draw(st.integers(0, 2**32 - 1))
    shape = draw(st.sampled_from([(3, 8, 2), (2, 6, 3), (4, 5, 2), (2, 12, 4)]))
    kind = draw(st.sampled_from(["one by one", "prompt", "batched", "dropped"]))
    if kind in ("one by one", "prompt"):
        return random_trace(24, *shape, prompt=8 if kind == "prompt" else 0, seed=seed)
    return batched_trace(24, *shape, batch=3 if kind == "batched" else 1, dropped=0.3 * (kind == "dropped"), seed=seed)


def largest_event(trace):
    """The most experts that any event accesses."""
    return max(len(accesses) for step in steps(trace) for accesses in step.accesses)


def decider_for(trace, policy, capacity):
    """A policy with an empty cache, or a full one."""
    composed = parse(policy)
    future = None
    if composed.oracle:
        future = UseList(steps(trace), trace.layers, trace.n_experts, composed.route.accesses)
    return Decider(
        composed, trace.layers, trace.n_experts, capacity, largest_event=largest_event(trace), future=future
    )


def decisions(trace, policy, capacity):
    """One decision for each event."""
    return list(run_without_clock(decider_for(trace, policy, capacity), steps(trace)))


def misses(trace, policy, capacity):
    """Of the whole trace."""
    return sum(decision.misses.total() for decision in decisions(trace, policy, capacity))


def timed(trace, policy, capacity, hardware, *, engine=None):
    """What every step did and when, and the device at the end."""
    model = ModelSpec(
        name="tiny", source="test", layers=trace.layers, experts=trace.n_experts, top_k=trace.top_k, hidden=10,
        expert_intermediate=50, heads=1, kv_heads=1, head_size=10, vocabulary=100,
    )
    engine = engine or plain_engine()
    decider = decider_for(trace, policy, capacity)
    device, outcomes = SimulatedGPU(hardware, engine), []
    program = Replay(steps(trace), decider, device, model, engine, decider.slots, outcomes.append).program()
    device.run(program)
    device.environment.run()
    return outcomes, device, model


def renumbered(trace, seed):
    """The same trace with the experts of each layer numbered another way."""
    random = np.random.default_rng(seed)
    new = np.array([random.permutation(trace.n_experts) for _ in range(trace.layers)])
    table = np.full((trace.layers, trace.absent + 1), trace.absent, trace.experts.dtype)
    table[:, : trace.n_experts] = new
    layer = np.arange(trace.layers)[None, :, None]
    return replace(
        trace, experts=table[layer, trace.experts],
        predicted={
            name: Prediction(table[layer, each.ranking], each.scores) for name, each in trace.predicted.items()
        },
    )


def foreseeing_nothing(trace):
    """The same trace with a predictor that ranks nobody."""
    nobody = Prediction(np.full_like(trace.predicted[PREDICTOR].ranking, trace.absent))
    return replace(trace, predicted={PREDICTOR: nobody})
