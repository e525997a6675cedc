"""Curves of real traces: the replay's misses and libcachesim's, at sizes from small to whole."""

import numpy as np
import pytest

from moesim.capacity import Capacity
from moesim.curve import curves_of
from tests.curve.test_lru import event_lists
from tests.oracles.exploded import libcachesim_hits
from tests.properties.runs import misses
from tests.test_real_traces import EIGHT_SIZES, RECORDINGS, recording


@pytest.mark.parametrize("name", RECORDINGS)
def test_curves_are_those_of_the_replay_and_of_libcachesim(name):
    trace = recording(name)
    curves = curves_of(trace)
    flat = [expert for event in event_lists(trace) for expert in event]
    for part in EIGHT_SIZES:
        slots = int(part * trace.layers * trace.n_experts)
        assert curves.misses["exploded"][slots] == len(flat) - sum(libcachesim_hits(flat, slots, "lru"))
        if slots >= curves.largest_event:
            assert curves.misses["lru"][slots] == misses(trace, "lru", Capacity(slots))
            assert curves.misses["optimum"][slots] == misses(trace, "belady", Capacity(slots))
        else:
            assert curves.hit_rate("lru", slots) is None
    assert curves.misses["lru"][-1] == len(np.unique(flat))
