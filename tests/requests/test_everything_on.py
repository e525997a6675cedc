"""A crowd on everything that the machine has: disk, CPU, two queues, two precisions, split experts. Nothing is lost."""

import pytest

from moesim.requests.serving import StreamConfig
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.requests.test_policies import LENGTHS, folder

__all__ = ["folder"]  # a fixture

REQUESTS = 150
"""`docs/serving.md` has ten thousand, by the same function."""
SYSTEMS = {
    "disk": {"policy": "lru", "host_cache_fraction": 0.5},
    "disk behind guesses": {"policy": "prefetch-and-refetch", "host_cache_fraction": 0.5},
    "disk behind two queues": {"policy": "promoe", "engine": "promoe", "host_cache_fraction": 0.5},
    "executed guesses": {"policy": "speculate-and-execute"},
    "two precisions": {"policy": "hobbit"},
    "two pools a layer": {"policy": "adapmoe"},
    "split experts": {"policy": "moepic"},
    "experts on the CPU": {"policy": "fiddler"},
    "results a layer late": {"policy": "ktransformers"},
    "both paths": {"policy": "freetoken"},
    "re-routed": {"policy": "cache-prior"},
    "dropped": {"policy": "specmd-drop"},
}


def served(folder, requests, **system):
    """The row of a crowd that never leaves the card idle for long."""
    return simulate(RunConfig(
        trace=folder / "tiny.safetensors", model=str(folder / "tiny.yaml"), hardware="rtx-a6000", cache_fraction=0.4,
        interval=False, stream=StreamConfig(arrivals_per_s=2000, requests=requests, max_batch=3), **system,
    )).row()


@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_is_lost(folder, system):
    conserved(served(folder, REQUESTS, **SYSTEMS[system]), REQUESTS)


def conserved(row, requests):
    """Requests, tokens, time, accesses, copies and bytes."""
    assert row["requests"] == row["requests_finished"] == row["requests_measured"] == requests
    assert row["tokens_measured"] == sum(LENGTHS[number % 3][1] for number in range(requests))
    parts = ("attention", "experts", "exposed_copy", "host", "idle")
    assert row["run_total_ns"] == sum(row[f"run_{part}_ns"] for part in parts)
    assert row["decode_total_ns"] == sum(row[f"{part}_total_ns"] for part in parts)
    assert row["accesses"] == row["hits"] + row["misses"]
    fetched = row["misses"] - row["stood_in"] - row["experts_on_cpu"]
    assert row["copies"] + row["copies_bottom"] == fetched + row["prefetches"]
    if row["slots_bottom"] == 0:
        whole, low_bytes = row["copies"] - row["copies_low"], row["expert_low_bytes"] or 0
        handed_over_bytes = whole * row["expert_bytes"] + row["copies_low"] * low_bytes
        assert row["bytes_copied"] + row["cancelled_bytes"] == handed_over_bytes
