"""A stream of requests over a made-up trace on a machine of round numbers."""

from dataclasses import dataclass, replace

import numpy as np

from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.devices.fast import FastGPU
from moesim.devices.simulated import SimulatedGPU
from moesim.model import ModelSpec
from moesim.policies.composition import parse
from moesim.replay import Replay, StepOutcome
from moesim.requests.arrivals import Arrival
from moesim.requests.latency import Latency
from moesim.requests.recorded import recorded_requests
from moesim.requests.scheduler import Limits, Scheduler
from moesim.trace import DECODE, PREFILL
from tests.plain_hardware import plain_engine
from tests.properties.runs import KERNELS_NS, NO_COSTS
from tests.traces_for_tests import random_trace

STEP_NS = sum(KERNELS_NS.values())
"""A step of a model of one layer when nothing is copied and the host costs nothing."""
PLAIN = replace(NO_COSTS, kernels_ns=KERNELS_NS)


def trace_of(*lengths, layers=1, experts=4, top_k=2, seed=0):
    """A trace of requests by (prompt, decode) tokens, one behind the other."""
    trace = random_trace(sum(map(sum, lengths)), layers, experts, top_k, seed=seed)
    request, position, phase, step = [], [], [], []
    for number, (prompt, decode) in enumerate(lengths):
        request += [number] * (prompt + decode)
        position += range(prompt + decode)
        phase += [PREFILL] * prompt + [DECODE] * decode
        first = step[-1] + 1 if step else 0
        step += [first] * prompt + [first + (prompt > 0) + each for each in range(decode)]
    as_u32 = [np.array(each, dtype=np.uint32) for each in (request, position, step)]
    return replace(
        trace, request=as_u32[0], position=as_u32[1], step=as_u32[2], phase=np.array(phase, dtype=np.uint8)
    )


@dataclass
class Run:
    """What came of a stream."""

    outcomes: list[StepOutcome]
    latency: Latency
    scheduler: Scheduler
    device: FastGPU | SimulatedGPU
    decider: Decider
    model: ModelSpec

    @property
    def served(self):
        """By the request's number."""
        return {each.number: each for each in self.latency.finished}


def serve(
    trace, arrivals_ns, policy="all-resident", slots=None, *, max_batch=8, max_prefill_tokens=2048, kv_tokens=10**6,
    warmup=0, hardware=PLAIN, device=FastGPU,
):
    """Serve requests that arrive at `arrivals_ns` (or are given as `Arrival`); KV cache is counted in tokens."""
    arrivals = [each if isinstance(each, Arrival) else Arrival(int(each)) for each in arrivals_ns]
    requests = recorded_requests(trace, arrivals)
    everything = trace.layers * trace.n_experts
    capacity = Capacity(slots or everything, everything=policy == "all-resident")
    decider = Decider(parse(policy), trace.layers, trace.n_experts, capacity, largest_event=trace.n_experts)
    model = ModelSpec(
        name="tiny", source="test", layers=trace.layers, experts=trace.n_experts, top_k=trace.top_k, hidden=10,
        expert_intermediate=50, heads=1, kv_heads=1, head_size=10, vocabulary=100,
    )
    engine, outcomes = plain_engine(), []
    latency = Latency(requests, warmup)
    needed = [request.context_tokens(len(request.decode)) for request in requests]
    limits = Limits(max_batch, max_prefill_tokens, kv_tokens, needed)
    scheduler = Scheduler(trace, requests, limits, latency)

    def observe(outcome):
        scheduler.observe(outcome)
        outcomes.append(outcome)

    machine = device(hardware, engine)
    machine.run(Replay(scheduler.steps(), decider, machine, model, engine, decider.slots, observe).program())
    return Run(outcomes, latency, scheduler, machine, decider, model)
