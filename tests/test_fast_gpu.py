"""FastGPU against SimulatedGPU, to the nanosecond: random programs, random replays, and every real trace."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.devices.fast import FastGPU
from moesim.devices.simulated import SimulatedGPU
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import UseList, steps
from moesim.model import Kernel
from moesim.policies.composition import parse
from moesim.replay import Replay
from moesim.result import Tally
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.plain_hardware import PlainHardware
from tests.random_machines import ENGINES, HARDWARE, MODEL
from tests.rows_for_tests import RECORDINGS, five_hundred_tokens, rows
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace

# ---- the device alone


def play(device, program):
    """Every instant that a host program leaves behind. Events and streams are named by number in `program`."""
    events, runs, instants = [], [], []
    streams = (device.compute, device.copies)

    def host():
        for what, number, size in program:
            stream = streams[number % 2]
            if what == "launch":
                kind = ("attention", "experts")[number % 2]
                kernel = device.prepare(kind, kind, 0, Kernel("made", 0, size, 0, 1, 0), 1 + number % 3)
                runs.append(device.launch(device.compute, kernel))
            elif what == "copy":
                instants.append(device.copy(device.copies, number, number, size))
            elif what == "record":
                events.append(device.record(stream, issued_ns=size if stream is device.copies else None))
            elif what == "decided":
                device.decided()
            elif events and what == "wait":
                device.wait(stream, events[number % len(events)])
            elif events:
                instants.append((yield from device.read_back(events[number % len(events)])))

    device.run(host())
    if isinstance(device, SimulatedGPU):
        device.environment.run()  # whatever was left enqueued
    launched = [
        (run.kind, run.ready_ns, run.start_ns, run.end_ns, run.busy_ns, [events.index(each) for each in run.waits])
        for run in runs
    ]
    return instants, [event.completed_ns for event in events], launched, device.blocked, device.host_now_ns


OPERATIONS = st.tuples(
    st.sampled_from(["launch", "copy", "record", "wait", "read back", "decided"]), st.integers(0, 7), st.integers(0, 60)
)


@given(hardware=HARDWARE, engine=ENGINES, program=st.lists(OPERATIONS, max_size=40))
@settings(max_examples=400)
def test_any_program_of_the_host_meets_the_same_instants(hardware, engine, program):
    assert play(FastGPU(hardware, engine), program) == play(SimulatedGPU(hardware, engine), program)


def test_a_copy_on_a_second_stream_has_no_closed_form():
    device = FastGPU(PlainHardware(), EngineSpec.load("eager"))
    with pytest.raises(AssertionError, match="one stream"):
        device.copy(device.compute, 0, 0, 100)


# ---- the loop on made traces


POLICIES = (
    "on-demand", "lru", "fifo", "least-stale[key=cyclic]", "belady[bypass]", "all-resident", "adapmoe-top-1",
    *(f"{name}[predictor={PREDICTOR}]" for name in (
        "speculate-and-execute", "prefetch-and-refetch", "resident-execute", "specmd-overfetch",
    )),
)


def replayed(make, trace, policy, slots, hardware, engine):
    """Everything that a run tells: each step's outcome, and the row."""
    composed = parse(policy)
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    capacity = {
        "none": Capacity(2 * 8, workspace=True), "all": Capacity(3 * 8, everything=True), "any": Capacity(slots),
    }[composed.spec.cache]
    future = UseList(steps(trace), 3, 8, composed.route.accesses) if composed.oracle else None
    decider = Decider(
        composed, 3, 8, capacity, largest_event=largest, future=future, stream_prefill=engine.prefill == "stream"
    )
    outcomes, tally = [], Tally(3, lossless=composed.lossless, layers=3, experts=8)

    def observe(outcome):
        outcomes.append([
            getattr(outcome, field.name) for field in fields(outcome) if field.name not in ("step", "decisions")
        ])
        tally.observe(outcome)

    device = make(hardware, engine)
    device.run(
        Replay(
            steps(trace), decider, device, MODEL, engine, decider.slots, observe, None, composed.executed_predictor
        ).program()
    )
    columns = tally.columns(MODEL.expert_bytes, MODEL.expert_bytes, hardware.link_bytes_per_s)
    return outcomes, columns, device.kernel_sources


@given(
    hardware=HARDWARE, engine=ENGINES, policy=st.sampled_from(POLICIES), slots=st.integers(2, 24),
    seed=st.integers(0, 1000), prompt=st.integers(0, 5),
)
@settings(max_examples=150)
def test_a_request_takes_the_same_time_step_by_step(hardware, engine, policy, slots, seed, prompt):
    given_all = random_trace(12, 3, 8, 2, prompt=prompt, seed=seed), policy, slots, hardware, engine
    assert replayed(FastGPU, *given_all) == replayed(SimulatedGPU, *given_all)


@given(
    hardware=HARDWARE, engine=ENGINES, policy=st.sampled_from(POLICIES[:6]), slots=st.integers(2, 24),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50)
def test_a_batch_takes_the_same_time_step_by_step(hardware, engine, policy, slots, seed):
    given_all = batched_trace(15, 3, 8, 2, dropped=0.2, seed=seed), policy, slots, hardware, engine
    assert replayed(FastGPU, *given_all) == replayed(SimulatedGPU, *given_all)


# ---- whole rows


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request, tmp_path_factory):
    """A trace of 500 tokens and its model."""
    return five_hundred_tokens(request.param, tmp_path_factory.mktemp("traces"))


@pytest.mark.parametrize(
    ("policy", "cache_fraction", "engine", "hardware"),
    [
        ("on-demand", 0.0, "yalis", "h200"),
        ("lru", 0.25, "graph", "rtx-a6000"),
        ("prefetch-and-refetch[predictor=synthetic,evict=lfu]", 0.5, "eager", "h200"),
    ],
)
def test_five_hundred_tokens_make_the_same_row(recording, policy, cache_fraction, engine, hardware):
    trace, model = recording
    simulated, *others = rows(
        trace=trace, model=model, policy=policy, cache_fraction=cache_fraction, engine=engine, hardware=hardware,
        warmup_tokens=16, interval=False,
    )
    assert all(other == simulated for other in others)


@pytest.mark.parametrize("engine", ["yalis-public", "graph"])
@pytest.mark.parametrize("cache_fraction", [0.0, 0.1, 0.75])
@pytest.mark.parametrize(
    "policy",
    [
        "least-stale[key=cyclic]", "belady", "speculate-and-execute", "prefetch-and-refetch", "resident-execute",
        "hobbit",
    ],
)
def test_policies_sizes_and_engines_make_the_same_row(policy, cache_fraction, engine):
    simulated, *others = rows(
        trace=RECORDINGS["reference-16x64"][0], model="olmoe-1b-7b", policy=policy, cache_fraction=cache_fraction,
        engine=engine, hardware="h200", warmup_tokens=2, measured_tokens=6, interval=False,
        hardware_overrides={"event_latency_ns": 1500},
    )
    assert all(other == simulated for other in others)


# ---- which device runs


def test_the_device_is_chosen_by_what_the_run_needs():
    configuration = {
        "trace": RECORDINGS["reference-16x64"][0], "model": "olmoe-1b-7b", "hardware": "rtx-a6000", "policy": "lru",
        "cache_fraction": 0.25, "warmup_tokens": 0, "measured_tokens": 2, "interval": False,
    }
    assert simulate(RunConfig(**configuration)).row()["device"] == "fast"
    drawn = simulate(RunConfig(**configuration), timeline=True)
    assert drawn.row()["device"] == "simulated"
    assert drawn.timeline.slices
    with pytest.raises(ConfigError, match="device fast: a timeline is drawn by the simulated device"):
        simulate(RunConfig(**configuration, device="fast"), timeline=True)
