"""Experts on disk: the pipeline disk, link, kernels by hand and by recurrence, both devices alike, whole runs."""

import random
from collections import deque
from pathlib import Path

import pytest

from moesim.device_choice import new_device
from moesim.errors import ConfigError
from moesim.host_tier import HostTier
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.plain_hardware import PlainHardware, plain_engine

SHIPPED = Path(__file__).parents[1] / "traces" / "reference-16x64.safetensors"


def play(device, program):
    device.run(program)
    if hasattr(device, "environment"):
        device.environment.run()


@pytest.mark.parametrize("chosen", ["fast", "simulated"])
def test_reads_and_copies_overlap_and_are_never_added_up(chosen):
    """Bytes take 1 ns on the link and 2 on the disk; 100 bytes: read 200 (+ 50 where it was idle), copy 2 + 100."""
    device, done = new_device(chosen, PlainHardware(disk_bytes_per_s=5e8), plain_engine()), []
    tier = HostTier(2, 1, 8, 100, device)  # 0 and 1 are in host memory

    def program():
        for slot, expert in enumerate((0, 5, 6, 7)):
            assert (tier.bring(device.copies, expert) is None) == (expert == 0)
            device.copy(device.copies, expert, slot, 100)
            tier.copied(device.copies, expert)
            done.append(device.record(device.copies))
        yield from device.read_back(done[-1])

    play(device, program())
    # 0: enqueued at 3, 10 + 102. 5 takes the place of 1, which nothing copies: read 3..253. 6 takes the place of 0,
    # copied by then: read 253..453, without latency. 7 takes the place of 5, copied at 253 + 112 = 365: read 453..653.
    assert [event.completed_ns for event in done] == [115, 253 + 112, 453 + 112, 653 + 112]
    assert device.disk_busy_ns == 650
    assert tier.reads == 3


@pytest.mark.parametrize("chosen", ["fast", "simulated"])
def test_a_read_waits_for_the_last_copy_of_whoever_it_displaces(chosen):
    device, done = new_device(chosen, PlainHardware(disk_bytes_per_s=1e10), plain_engine()), []
    tier = HostTier(1, 1, 8, 100, device)

    def program():
        for slot, expert in enumerate((3, 4)):
            tier.bring(device.copies, expert)
            device.copy(device.copies, expert, slot, 100)
            tier.copied(device.copies, expert)
            done.append(device.record(device.copies))
        yield from device.read_back(done[-1])

    play(device, program())
    # 3: read 0..60, copied 60..172. Only then 4: read 172..232, copied 232..344.
    assert [event.completed_ns for event in done] == [172, 344]


class Noted:
    """A device of names that notes what its disk waits for."""

    copies, prefetches, disk = "copies", "prefetches", "disk"

    def __init__(self):
        self.records, self.disk_waits = 0, []

    def record(self, stream):
        self.records += 1
        return f"{stream} {self.records}"

    def wait(self, stream, event):
        if stream == self.disk:
            self.disk_waits.append(event)

    def read(self, expert, size_bytes):
        return 0


def test_a_read_waits_for_the_copies_of_both_streams():
    device = Noted()
    tier = HostTier(1, 1, 8, 100, device)
    for stream in (device.prefetches, device.copies):  # foreseen and displaced, then demanded
        assert tier.bring(stream, 0) is None
        tier.copied(stream, 0)
    tier.bring(device.copies, 1)
    assert device.disk_waits == ["prefetches 1", "copies 2"]


@pytest.mark.parametrize("chosen", ["fast", "simulated"])
@pytest.mark.parametrize("seed", range(8))
def test_the_pipeline_is_the_max_plus_recurrence_and_the_order_that_of_an_lru(chosen, seed):
    draw = random.Random(seed)
    slots, experts, rate = draw.choice([1, 2, 5, 9]), 10, draw.choice([3e8, 1e9, 4e9])
    asked = [draw.randrange(experts) for _ in range(60)]
    device, ends = new_device(chosen, PlainHardware(disk_bytes_per_s=rate), plain_engine()), []
    tier = HostTier(slots, 1, experts, 100, device)

    def program():
        for expert in asked:
            tier.bring(device.copies, expert)
            device.copy(device.copies, expert, 0, 100)
            tier.copied(device.copies, expert)
            ends.append(device.record(device.copies))
        yield from device.read_back(ends[-1])

    play(device, program())
    held, copied_ns = deque(range(slots)), {}
    disk_ns, link_ns, enqueued_ns, reads, expected = -1, -1, 0, 0, []
    for expert in asked:
        here_ns = 0
        if expert in held:
            held.remove(expert)
        else:
            start = max(disk_ns, enqueued_ns, copied_ns.get(held.popleft(), 0))
            disk_ns = here_ns = start + round(100e9 / rate) + (50 if start > disk_ns else 0)
            reads += 1
        held.append(expert)
        enqueued_ns += 3
        start = max(link_ns, enqueued_ns, here_ns)
        link_ns = start + 102 + (10 if start > link_ns else 0)
        copied_ns[expert] = link_ns
        expected.append(link_ns)
    assert [event.completed_ns for event in ends] == expected
    assert tier.reads == reads


def config(**options):
    return RunConfig(**{
        "trace": SHIPPED, "model": "olmoe-1b-7b", "hardware": "rtx-4090", "policy": "lru", "cache_fraction": 0.1,
        "engine": "graph", "warmup_tokens": 2, "measured_tokens": 4, "interval": False, **options,
    })


@pytest.mark.parametrize("policy", ["lru", "prefetch-and-refetch", "speculate-and-execute"])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_both_devices_time_a_run_alike_and_everything_adds_up(policy, share):
    fast, simulated = (
        simulate(config(policy=policy, host_cache_fraction=share, device=device)).row()
        for device in ("fast", "simulated")
    )
    for row in (fast, simulated):
        for name in ("device", "configuration", "run_hash"):
            row.pop(name)
    assert fast == simulated
    parts = ("attention", "experts", "exposed_copy", "host", "idle")
    assert fast["decode_total_ns"] == sum(fast[f"{part}_total_ns"] for part in parts)
    assert fast["disk_bytes"] == fast["disk_reads"] * fast["expert_bytes"] <= fast["bytes_copied"]
    assert 0 < fast["disk_utilisation"] <= 1
    assert fast["host_bytes"] == int(share * 16 * 64) * fast["expert_bytes"]


def test_decisions_do_not_know_the_disk_and_software_queues_go_with_it():
    rows = [
        simulate(config(policy="prefetch-and-refetch", engine=engine, host_cache_fraction=share)).row()
        for engine in ("graph", "promoe") for share in (1.0, 0.2)
    ]
    whole, part, queued, queued_part = rows
    assert (whole["misses"], whole["prefetches"]) == (part["misses"], part["prefetches"])
    assert whole["tpot_mean_ns"] < part["tpot_mean_ns"]
    assert (whole["disk_reads"], whole["disk_utilisation"], queued["disk_reads"]) == (0, 0.0, 0)
    assert queued_part["disk_reads"] > 0
    assert queued_part["tpot_mean_ns"] > queued["tpot_mean_ns"]


def test_what_cannot_be_run_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"hardware h200: no figure disk_bytes_per_s: host_cache_fraction 0.5 leaves"):
        simulate(config(hardware="h200", host_cache_fraction=0.5))
    with pytest.raises(ConfigError, match="host_cache_fraction: fiddler executes experts where they lie"):
        simulate(config(policy="fiddler", host_cache_fraction=0.5))
    with pytest.raises(ConfigError, match="host_cache_fraction: expert-replication copies an expert more than once"):
        simulate(config(policy="expert-replication", host_cache_fraction=0.5))
