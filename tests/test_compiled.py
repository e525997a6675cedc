"""LRU and on-demand in machine code against the loop in SimPy, step by step, on made traces and machines."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.compiled import jit, run
from moesim.compiled.run import CompiledRun, is_compiled
from moesim.decide import Decider, OptimumHits
from moesim.devices.simulated import SimulatedGPU
from moesim.engine import EngineSpec
from moesim.events import steps
from moesim.policies.composition import parse
from moesim.replay import Replay
from moesim.result import Tally
from tests.plain_hardware import plain_engine
from tests.random_machines import ENGINES, HARDWARE, MODEL
from tests.sweeps_for_tests import write_sweep
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="numba is not installed: pip install 'moesim[fast]'")


POLICIES = ("lru", f"prefetch-and-refetch[predictor={PREDICTOR}]", "lru[prefetch=pre-gated]")


class Told:
    """What a run told of each step: its time, and what its decisions come to."""

    def __init__(self):
        self.outcomes = []
        self.tally = Tally(3, lossless=True, layers=3, experts=8)

    def observe(self, outcome):
        self.tally.observe(outcome)
        numbers = {each.name: getattr(outcome, each.name) for each in fields(outcome)}
        decisions = numbers.pop("decisions")
        del numbers["step"], numbers["drafts"]
        misses = sum((each.misses for each in decisions), Counter())
        sums = [
            sum(each)
            for each in zip(
                *(
                    (d.hits, d.hits_by_prefetch, len(d.prefetch), d.prefetch_dropped, d.prefetch_unused)
                    for d in decisions
                ),
                strict=True,
            )
        ]
        self.outcomes.append((numbers, sums, misses))


def some_optimum(trace, seed):
    """Any flags will do: they only tell misses from misses."""
    flags, random = OptimumHits(), np.random.default_rng(seed)
    for step in steps(trace):
        for accesses in step.accesses:
            flags.add_event((random.random(len(accesses)) < 0.5).tolist())
    return flags


@given(
    hardware=HARDWARE, engine=ENGINES, slots=st.integers(0, 24), seed=st.integers(0, 1000), prompt=st.integers(0, 6),
    batch=st.sampled_from([0, 2, 5]), policy=st.sampled_from(POLICIES),
    context=st.sampled_from([None, 64]), block=st.sampled_from([1, 30, 100_000]),
)
@settings(max_examples=120)
def test_each_step_is_decided_and_timed_as_by_the_loop(
    hardware, engine, slots, seed, prompt, batch, policy, context, block
):
    trace = (
        batched_trace(15, 3, 8, 2, batch=batch, dropped=0.2, seed=seed) if batch
        else random_trace(14, 3, 8, 2, prompt=prompt, seed=seed, weights=seed % 2 == 0)
    )
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    capacity = Capacity(slots) if slots >= 2 else Capacity(2 * (8 if prompt else largest), workspace=True)
    if batch:
        policy = "lru"  # a batch has no predictions
    optimum = None if capacity.workspace else some_optimum(trace, seed)
    stream = engine.prefill == "stream"
    decider = Decider(
        parse(policy), 3, 8, capacity, largest_event=largest, optimum=optimum, stream_prefill=stream
    )
    loop, compiled = Told(), Told()
    device = SimulatedGPU(hardware, engine)
    device.run(Replay(steps(trace), decider, device, MODEL, engine, decider.slots, loop.observe, context).program())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "BLOCK_ACCESSES", block)
        CompiledRun(
            trace, trace.tokens, capacity, MODEL, engine, hardware, parse(policy).prefetch, optimum,
            compiled.observe, context,
        ).run()
    assert compiled.outcomes == loop.outcomes
    figures = MODEL.expert_bytes, MODEL.expert_bytes, hardware.link_bytes_per_s
    assert compiled.tally.columns(*figures) == loop.tally.columns(*figures)


@pytest.mark.parametrize(
    ("policy", "capacity", "expected"),
    [
        ("lru", Capacity(8), True),
        ("on-demand", Capacity(8, workspace=True), True),
        ("lru", Capacity(8, per_layer=True), False),
        ("all-resident", Capacity(24, everything=True), False),
        ("lru[prefetch=predicted[count=3]]", Capacity(8), True),
        ("lru[prefetch=multi-layer]", Capacity(8), False),
        ("lru[on_miss=drop]", Capacity(8), False),
        ("fifo", Capacity(8), False),
    ],
)
def test_only_plain_rules_are_compiled(policy, capacity, expected):
    assert is_compiled(parse(policy), capacity, plain_engine()) == expected


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(jit, "AVAILABLE", False)
    assert not is_compiled(parse("lru"), Capacity(8), plain_engine())


def test_an_engine_that_does_what_is_not_compiled_takes_the_loop():
    assert is_compiled(parse("lru"), Capacity(8), EngineSpec.load("graph"))
    assert not is_compiled(parse("lru"), Capacity(8), EngineSpec.load("promoe"))


def test_without_numba_everything_runs_in_plain_python(tmp_path):
    """As after `pip install moesim`: nothing asks for a compiler that is not there."""
    write_sweep(tmp_path)
    run = "sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out", "--workers", "1", "-q"
    program = "import sys; sys.modules['numba'] = None; from moesim.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", program, *map(str, run)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "out" / "results.parquet").exists()
