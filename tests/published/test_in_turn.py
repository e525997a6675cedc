"""Routing built for an argument: the misses that the argument counts, and the turning point that the figures give."""

import re

import pytest

from moesim.errors import ConfigError
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.published.in_turn import InTurn, in_turn
from moesim.published.reproduce import load_asked
from moesim.run import RunConfig, simulate
from tests.cpu_crossover import crossover_tokens

SWITCH = ModelSpec.load("switch-base-128")
LAYERS = 12


def misses(folder, built, cache, **more):
    path = folder / "built.safetensors"
    in_turn(built, SWITCH, "built").save(path)
    return simulate(RunConfig(
        trace=path, model=SWITCH.name, hardware="rtx-a6000", cache_fraction=cache, interval=False, context_tokens=64,
        **more,
    )).row()["misses"]


def test_a_fixed_split_misses_without_end_where_one_layer_wants_one_slot_more(tmp_path):
    """192 slots, 16 a layer: the layer that goes round 17 misses every time; one pool of 192 holds all 28 for good."""
    built = InTurn(first_layer=17, other_layers=1, steps=100)
    assert misses(tmp_path, built, 0.125, policy="lru", per_layer=True, warmup_tokens=0) == 100 + LAYERS - 1
    assert misses(tmp_path, built, 0.125, policy="lru", warmup_tokens=0) == 17 + LAYERS - 1


def test_lru_misses_always_where_the_optimum_misses_once_for_every_slot(tmp_path):
    """192 experts in a fixed order, one slot fewer: Belady misses once in 191 accesses (Sleator and Tarjan 1985)."""
    built = InTurn(first_layer=16, other_layers=16, steps=16 + 2 * 191)
    counted = {"warmup_tokens": 16, "measured_tokens": 2 * 191}
    assert misses(tmp_path, built, 0.1244, policy="lru", **counted) == 2 * 191 * LAYERS
    assert abs(misses(tmp_path, built, 0.1244, policy="belady", **counted) - 2 * LAYERS) <= 1


def test_all_sequences_of_a_step_choose_the_same_experts():
    built = in_turn(InTurn(first_layer=8, other_layers=4, steps=3, sequences=5), ModelSpec.load("mixtral-8x7b"), "x")
    assert built.metadata.synthetic
    assert built.experts[::5, 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert built.experts[::5, 1].tolist() == [[0, 1], [2, 3], [0, 1]]
    assert all((built.experts[first : first + 5] == built.experts[first]).all() for first in (0, 5, 10))


@pytest.mark.parametrize("around", [1, 9])
def test_more_experts_than_there_are_or_fewer_than_a_token_takes_are_refused(around):
    with pytest.raises(ConfigError, match=rf"x: {around} experts in turn: mixtral-8x7b takes 2 to 8"):
        in_turn(InTurn(first_layer=2, other_layers=around, steps=1), ModelSpec.load("mixtral-8x7b"), "x")


def test_the_claims_stand_on_both_sides_of_the_crossover_that_the_figures_give():
    _, system = load_asked("fiddler").systems["fiddler"]
    model = ModelSpec.load("mixtral-8x7b")
    for card, tag in (("rtx-a6000", ""), ("h200", "-h200")):
        tokens = crossover_tokens(HardwareSpec.load(card).at("centre"), model)
        below, at = (next(c for c in system.claims if c.id == f"crossover-{side}{tag}") for side in ("below", "at"))
        assert (system.axes | system.runs[below.of])["hardware"] == card
        assert [below.traces, at.traces] == [[f"mixtral-together-{tokens - 1}"], [f"mixtral-together-{tokens}"]]
        assert re.search(rf"\b{tokens - 1} tokens", below.says)
