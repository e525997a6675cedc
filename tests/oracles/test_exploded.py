"""libcachesim against a scan of every slot, and what its policies do where policies usually differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.event_atomic import Event, simulate
from tests.oracles.exploded import POLICIES, explode, libcachesim_hits, scanned_hits

NVMOE = ("olmoe-all", "dsv2lite-all", "gptoss-all")
TOKENS = 60  # a stretch: the scans take minutes over a whole trace


def nvmoe_events(name: str) -> list[tuple[int, list[int]]]:
    """(layer, experts lightest first) of each event; the recording lists the heaviest first."""
    relative = Path("shared") / "traces" / "nvmoe" / f"{name}.tokens.jsonl"
    candidates = (parent / relative for parent in Path(__file__).resolve().parents)
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        pytest.skip(f"the shared trace {relative} is not here")
    events: list[tuple[int, list[int]]] = []
    with path.open() as lines:
        for _, line in zip(range(TOKENS), lines, strict=False):
            layers: dict[int, list[int]] = {}
            for layer, expert in json.loads(line):
                layers.setdefault(layer, []).append(expert)
            events += [(layer, experts[::-1]) for layer, experts in layers.items()]
    return events


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NVMOE)
def test_real_traces_at_eight_sizes(name, policy):
    accesses = explode(nvmoe_events(name))
    distinct = len(set(accesses))
    for eighth in range(1, 9):
        slots = max(1, distinct * eighth // 8)
        assert libcachesim_hits(accesses, slots, policy) == scanned_hits(accesses, slots, policy)


@settings(max_examples=300)
@given(
    keys=st.lists(st.integers(0, 7), min_size=1, max_size=60),
    slots=st.integers(1, 6),
    policy=st.sampled_from(POLICIES),
)
def test_one_expert_per_event_is_ordinary_caching(keys, slots, policy):
    events = [Event(step, 0, (key,)) for step, key in enumerate(keys)]
    hits = [access.hit for access in simulate(events, slots, policy).accesses]
    assert hits == libcachesim_hits(keys, slots, policy) == scanned_hits(keys, slots, policy)


def test_lfu_breaks_ties_by_last_access():
    # counts 2 and 2: 1 was inserted first, 2 was accessed last but one; by insertion 1 would go, by last access 2 goes
    assert libcachesim_hits([1, 2, 2, 1, 3, 1], 2, "lfu") == [False, False, True, True, False, True]


def test_lfu_forgets_the_count_of_what_it_evicts():
    # 1 is evicted with a count of 1 and comes back with 1, not 2: older than 4, it goes again
    assert libcachesim_hits([1, 2, 2, 3, 1, 4, 1], 2, "lfu") == [False, False, True, False, False, False, False]


def test_belady_must_insert():
    # with bypass the last access would hit: 2 is never used again
    assert libcachesim_hits([1, 2, 1], 1, "belady") == [False, False, False]
