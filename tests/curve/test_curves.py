"""All curves of a trace together: what the command prints, draws and hands to scripts."""

import json
from itertools import product

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.capacity import Capacity
from moesim.cli import app
from moesim.curve import curves_of
from moesim.curve.split import UNKNOWN, best_split
from moesim.decide import Decider, run_without_clock
from moesim.errors import TraceError
from moesim.events import steps
from moesim.policies.composition import parse
from tests.curve.test_lru import TRACES, event_lists
from tests.traces_for_tests import random_trace


def misses_of_replay(trace, slots, largest, **capacity):
    decider = Decider(
        parse("lru"), trace.layers, trace.n_experts, Capacity(slots, **capacity), largest_event=largest
    )
    return sum(decision.misses.total() for decision in run_without_clock(decider, steps(trace)))


@pytest.mark.parametrize("name", TRACES)
def test_pools_of_even_size_are_those_of_the_replay(name):
    trace = TRACES[name]
    curves = curves_of(trace, optimum=False)
    for slots in range(trace.layers * curves.largest_event, trace.layers * trace.n_experts + 1):
        each = slots // trace.layers
        assert curves.misses["lru_even"][slots] == misses_of_replay(trace, each, curves.largest_event, per_layer=True)


@pytest.mark.parametrize("name", TRACES)
def test_curves_keep_their_order(name):
    curves = curves_of(TRACES[name])
    misses = {key: np.where(each == UNKNOWN, np.inf, each) for key, each in curves.misses.items()}
    for rule in ("lru", "optimum"):
        assert (misses[f"{rule}_split"] <= misses[f"{rule}_even"]).all()
    for shape in ("", "_even", "_split"):
        assert (misses["optimum" + shape] <= misses["lru" + shape]).all()
    assert (misses["optimum"] <= misses["optimum_split"]).all(), "one pool can do what any split does"
    assert (misses["lru"][curves.largest_event :] <= misses["exploded"][curves.largest_event :]).all()
    for each in misses.values():
        known = each[np.isfinite(each)]
        assert (np.diff(known[1:] if np.isfinite(each[0]) else known) <= 0).all(), "more slots never miss more"
        assert known[-1] == curves.compulsory == len({e for event in event_lists(TRACES[name]) for e in event})


def test_below_the_largest_event_a_curve_says_nothing():
    curves = curves_of(TRACES["prefill"])
    assert curves.misses["lru"][0] == curves.accesses, "no slots: nothing survives its event"
    assert curves.hit_rate("lru", curves.largest_event - 1) is None
    assert curves.hit_rate("lru", curves.largest_event) is not None


@pytest.mark.parametrize("seed", range(20))
def test_no_split_misses_less_than_the_best(seed):
    random = np.random.default_rng(seed)
    cost = np.sort(random.integers(0, 30, (3, 6)), axis=1)[:, ::-1].copy()
    for layer, unknown in enumerate(random.integers(0, 3, 3)):
        cost[layer, :unknown] = UNKNOWN
    found = best_split(cost)
    for total in range(16):
        tried = [
            sum(cost[layer, slots] for layer, slots in enumerate(parts))
            for parts in product(range(6), repeat=3)
            if sum(parts) == total and all(cost[layer, slots] != UNKNOWN for layer, slots in enumerate(parts))
        ]
        assert found.misses[total] == min(tried, default=UNKNOWN)
        if tried:
            assert sum(found.slots(total)) == total
            assert sum(cost[layer, slots] for layer, slots in enumerate(found.slots(total))) == min(tried)


@pytest.mark.parametrize("name", TRACES)
def test_working_sets_are_counted_stretch_by_stretch(name):
    trace = TRACES[name]
    found = curves_of(trace, optimum=False).working_sets
    events = event_lists(trace)
    steps_taken = len(events) // trace.layers
    assert list(found) == [length for length in (1, 4, 16, 64) if length <= steps_taken]
    for length, means in found.items():
        for layer in range(trace.layers):
            of_layer = events[layer :: trace.layers]
            sizes = [
                len({expert for event in of_layer[start : start + length] for expert in event})
                for start in range(steps_taken - length + 1)
            ]
            assert means[layer] == pytest.approx(np.mean(sizes), rel=1e-12)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    TRACES["prefill"].save(path)
    return path


def test_the_command_prints_a_table_and_draws(file, tmp_path):
    drawn = tmp_path / "a.svg"
    done = CliRunner().invoke(app, ["curve", str(file), "--plot", str(drawn)])
    assert done.exit_code == 0, done.output
    assert "100.0%" in done.output
    assert drawn.read_bytes().startswith(b"<?xml")
    before = drawn.read_bytes()
    CliRunner().invoke(app, ["curve", str(file), "--plot", str(drawn)])
    assert drawn.read_bytes() == before, "the same curves give the same bytes"


def test_scripts_get_every_size(file):
    done = CliRunner().invoke(app, ["curve", str(file), "--json", "--no-optimum"])
    values = json.loads(done.stdout)
    assert len(values["misses"]["lru"]) == 25
    assert values["misses"]["lru"][1] is None
    assert values["misses"]["lru"][24] == values["compulsory"]
    assert sum(map(sum, values["lru_distances_by_layer"])) == values["accesses"]
    assert not any("optimum" in name for name in values["misses"])


def test_what_cannot_be_used_is_refused(file, tmp_path):
    refused = CliRunner().invoke(app, ["curve", str(file), "--plot", str(tmp_path / "a.gif")])
    assert "the name ends in .svg, .png, .pdf" in str(refused.exception)
    prompt = random_trace(20, prompt=20)
    with pytest.raises(TraceError, match="prefill alone is left"):
        curves_of(prompt, decode_only=True)
