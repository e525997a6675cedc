"""FastGPU against SimulatedGPU, to the nanosecond: random programs, random replays, and every real trace."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.decide import Capacity, Decider
from moesim.devices.fast import FastGPU
from moesim.devices.simulated import SimulatedGPU
from moesim.engine import EngineSpec, Launches
from moesim.errors import ConfigError
from moesim.events import UseList, steps
from moesim.model import Kernel, ModelSpec
from moesim.policies.composition import parse
from moesim.replay import Replay
from moesim.result import Tally
from moesim.run import RunConfig, simulate
from moesim.trace import Trace
from moesim.trace_import import import_trace
from tests.plain_hardware import PlainHardware
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace

ns = st.integers(0, 40)
HARDWARE = st.builds(
    PlainHardware, link_bytes_per_s=st.sampled_from([1e8, 1e9, 3e9]), copy_start_up_ns=ns, copy_descriptor_ns=ns,
    enqueue_copy_ns=ns, enqueue_kernel_ns=ns, enqueue_graph_ns=ns, record_event_ns=ns, wait_event_ns=ns,
    read_back_ns=ns, event_latency_ns=ns, loop_layer_ns=ns, switch_ns=ns,
    kernels_ns=st.fixed_dictionaries(dict.fromkeys(("attention", "router", "experts", "head", "dense layer"), ns)),
)
ENGINES = st.builds(
    EngineSpec, name=st.just("test"), source=st.just("test"), mode=st.sampled_from(["eager", "graph"]),
    experts_captured=st.booleans(), copies_per_expert=st.integers(1, 3), start=st.sampled_from(["all", "each"]),
    read_back=st.sampled_from(["blocking", "overlapped"]), prefill=st.sampled_from(["stream", "demand"]),
    launches=st.builds(
        Launches, attention=st.integers(1, 4), router=st.integers(1, 3), experts=st.integers(0, 3),
        experts_each=st.integers(0, 2), head=st.integers(1, 3),
    ),
    last_layer_reused=st.booleans(),
)


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
@settings(max_examples=400, deadline=None)
def test_any_program_of_the_host_meets_the_same_instants(hardware, engine, program):
    assert play(FastGPU(hardware, engine), program) == play(SimulatedGPU(hardware, engine), program)


def test_a_copy_on_a_second_stream_has_no_closed_form():
    device = FastGPU(PlainHardware(), EngineSpec.load("eager"))
    with pytest.raises(AssertionError, match="one stream"):
        device.copy(device.compute, 0, 0, 100)


# ---- the loop on made traces


MODEL = ModelSpec(
    name="tiny", source="test", layers=4, experts=8, top_k=2, hidden=10, expert_intermediate=2, heads=1, kv_heads=1,
    head_size=10, vocabulary=100, dense_layers=[1], dense_intermediate=4,
)
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
    outcomes, tally = [], Tally(3, lossless=composed.lossless, experts=8)

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
    return outcomes, tally.columns(MODEL.expert_bytes, hardware.link_bytes_per_s), device.kernel_sources


@given(
    hardware=HARDWARE, engine=ENGINES, policy=st.sampled_from(POLICIES), slots=st.integers(2, 24),
    seed=st.integers(0, 1000), prompt=st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_a_request_takes_the_same_time_step_by_step(hardware, engine, policy, slots, seed, prompt):
    given_all = random_trace(12, 3, 8, 2, prompt=prompt, seed=seed), policy, slots, hardware, engine
    assert replayed(FastGPU, *given_all) == replayed(SimulatedGPU, *given_all)


@given(
    hardware=HARDWARE, engine=ENGINES, policy=st.sampled_from(POLICIES[:6]), slots=st.integers(2, 24),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_a_batch_takes_the_same_time_step_by_step(hardware, engine, policy, slots, seed):
    given_all = batched_trace(15, 3, 8, 2, dropped=0.2, seed=seed), policy, slots, hardware, engine
    assert replayed(FastGPU, *given_all) == replayed(SimulatedGPU, *given_all)


# ---- whole rows


SHIPPED = Path(__file__).parents[1] / "traces"
SHARED = Path(__file__).parents[2] / "shared" / "traces"
RECORDINGS = {
    "reference-16x64": (SHIPPED / "reference-16x64.safetensors", "olmoe-1b-7b"),
    "reference-16x64-scores": (SHIPPED / "reference-16x64-scores.safetensors", "olmoe-1b-7b"),
    "reference-48x128": (SHIPPED / "reference-48x128.safetensors", "qwen3-30b-a3b"),
    "reference-48x128-scores": (SHIPPED / "reference-48x128-scores.safetensors", "qwen3-30b-a3b"),
    "olmoe": (SHARED / "nvmoe" / "olmoe-all.tokens.jsonl", "olmoe-1b-7b"),
    "deepseek-v2-lite": (SHARED / "nvmoe" / "dsv2lite-all.tokens.jsonl", "deepseek-v2-lite"),
    "gpt-oss-120b": (SHARED / "nvmoe" / "gptoss-all.tokens.jsonl", "gpt-oss-120b"),
    "gpt-oss-20b": (SHARED / "gpt-oss-20b" / "gptoss20b_decode_experts.npz", "gpt-oss-20b"),
}
TELLS_THE_DEVICE = ("device", "configuration", "run_hash")


def rows(**configuration):
    """The row of each device, less what names the device."""
    found = []
    for device in ("fast", "simulated"):
        row = simulate(RunConfig(device=device, **configuration)).row()
        assert row["device"] == device
        found.append({name: value for name, value in row.items() if name not in TELLS_THE_DEVICE})
    return found


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request, tmp_path_factory):
    """The first 500 tokens of a trace, or all that it has, and the model that it was routed like."""
    path, model = RECORDINGS[request.param]
    if not path.exists():
        pytest.skip(f"{path.name} is not part of the repository")
    trace = Trace.load(path) if path.suffix == ".safetensors" else import_trace(path)
    short = tmp_path_factory.mktemp("traces") / f"{request.param}.safetensors"
    trace.slice(0, min(500, trace.tokens)).save(short)
    return short, model


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
    fast, simulated = rows(
        trace=trace, model=model, policy=policy, cache_fraction=cache_fraction, engine=engine, hardware=hardware,
        warmup_tokens=16, interval=False,
    )
    assert fast == simulated


@pytest.mark.parametrize("engine", ["yalis-captured", "yalis-public", "graph"])
@pytest.mark.parametrize("cache_fraction", [0.0, 0.1, 0.75])
@pytest.mark.parametrize(
    "policy",
    [
        "least-stale[key=cyclic]", "belady", "speculate-and-execute", "prefetch-and-refetch", "resident-execute",
        "hobbit",
    ],
)
def test_policies_sizes_and_engines_make_the_same_row(policy, cache_fraction, engine):
    fast, simulated = rows(
        trace=RECORDINGS["reference-16x64"][0], model="olmoe-1b-7b", policy=policy, cache_fraction=cache_fraction,
        engine=engine, hardware="h200", warmup_tokens=2, measured_tokens=6, interval=False,
        hardware_overrides={"event_latency_ns": 1500},
    )
    assert fast == simulated


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
