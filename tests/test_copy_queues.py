"""Software queues above the FIFO engine: by hand, against a nanosecond-by-nanosecond oracle, and in whole runs."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from moesim.devices.copy_queues import SimulatedGPUWithCopyThread
from moesim.engine import CopyThreadSpec
from moesim.model import Kernel
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.timeline import Timeline
from tests.oracles.two_queues import Copy
from tests.oracles.two_queues import simulate as by_nanoseconds
from tests.plain_hardware import PlainHardware, plain_engine

SHIPPED = Path(__file__).parents[1] / "traces" / "reference-16x64.safetensors"


def gpu(queues=2, ahead=2, chunks=3, timeline=None, **hardware):
    thread = CopyThreadSpec(queues=queues, submitted_ahead=ahead, drops_unstarted=True)
    engine = plain_engine(copies_per_expert=chunks).model_copy(update={"copy_thread": thread})
    return SimulatedGPUWithCopyThread(PlainHardware(**hardware), engine, timeline)


FREE = dict.fromkeys(
    ("enqueue_copy_ns", "copy_start_up_ns", "copy_descriptor_ns", "record_event_ns", "wait_event_ns", "read_back_ns"), 0
)
"""Nothing costs anything but bytes, of which one takes a nanosecond."""


def spend(device, ns):
    """Let the host be busy, in fives."""
    nothing = device.prepare("attention", "attention", 0, Kernel("attention", 0, 0, 0, 1, 0), 1)
    for _ in range(ns // 5):
        device.launch(device.compute, nothing)


@pytest.mark.parametrize(
    ("queues", "ahead", "demanded_ns", "foreseen_ns"),
    [
        # Guess handed over at 0, demand at 5, 300 bytes each in chunks of 100; 3 to submit, 10 to start up, 2 + 100.
        # One at a time: the guess' first chunk 3..115, each further one submitted to an idle engine, 3 + 112 later.
        (2, 1, 115 + 3 * 115, 115 + 5 * 115),
        # Two at a time: the guess' second chunk is chosen at 3, before the demand is there, and ends at 217.
        (2, 2, 217 + 3 * 102, 217 + 4 * 102),
        # All at once: the guess' third is chosen at 6, behind the demand's arrival, so the demand is before it.
        (2, 9, 217 + 3 * 102, 217 + 4 * 102),
        (1, 2, 115 + 5 * 102, 115 + 2 * 102),
    ],
)
def test_demand_overtakes_at_the_end_of_a_chunk_and_not_what_is_submitted(queues, ahead, demanded_ns, foreseen_ns):
    device, done = gpu(queues, ahead), {}

    def program():
        device.copy(device.prefetches, 0, 0, 300)
        done["foreseen"] = device.record(device.prefetches)
        spend(device, 5)
        device.copy(device.copies, 1, 1, 300)
        done["demanded"] = device.record(device.copies)
        yield from device.read_back(done["foreseen"])
        yield from device.read_back(done["demanded"])

    device.run(program())
    assert done["demanded"].completed_ns == demanded_ns
    assert done["foreseen"].completed_ns == foreseen_ns
    assert device.link_busy_ns == 6 * 102 + (10 if ahead > 1 else 60)


def test_only_what_has_not_begun_is_dropped_and_what_has_begun_is_brought_to_its_end_first():
    device, done, dropped = gpu(ahead=1), {}, []

    def program():
        for expert in range(3):
            device.copy(device.prefetches, expert, expert, 300)
            done[expert] = device.record(device.prefetches)
        spend(device, 5)
        dropped.extend((yield from device.drop_unstarted({0, 1, 7})))
        device.hasten({0})
        device.copy(device.copies, 7, 7, 300)
        done[7] = device.record(device.copies)
        yield from device.read_back(done[7])
        yield from device.read_back(done[2])

    device.run(program())
    assert dropped == [1]  # 0 has begun, 2 is not asked about
    assert device.cancelled_bytes == 300
    assert [done[expert].completed_ns for expert in (0, 7, 2)] == [3 * 115, 6 * 115, 9 * 115]


def test_a_wait_holds_back_its_own_queue_alone():
    device, done = gpu(ahead=1, chunks=1), {}

    def program():
        device.launch(device.compute, device.prepare("a", "attention", 0, Kernel("a", 0, 1000, 0, 1, 0), 1))  # 5..1005
        device.wait(device.copies, device.record(device.compute))
        device.copy(device.copies, 0, 0, 100)
        done["held"] = device.record(device.copies)
        device.copy(device.prefetches, 1, 1, 100)
        done["free"] = device.record(device.prefetches)
        yield from device.read_back(done["held"])

    device.run(program())
    assert done["free"].completed_ns == 5 + 115
    assert done["held"].completed_ns == 1005 + 115


def test_a_record_behind_nothing_but_a_struck_copy_does_not_wait_for_the_engine():
    """All at 0: the demands fill the engine, the second of them strikes the guess, whose record is left alone."""
    device, done = gpu(ahead=2, chunks=1, **FREE), []

    def program():
        device.copy(device.prefetches, 0, 4, 8)
        done.append(device.record(device.prefetches))
        device.copy(device.copies, 1, 3, 16)
        device.copy(device.copies, 2, 4, 4)
        done.append(device.record(device.copies))
        yield from device.read_back(done[1])

    device.run(program())
    assert device.cancelled_bytes == 8
    assert [event.completed_ns for event in done] == [0, 20]


def test_a_wait_behind_a_full_engine_ends_the_latency_after_its_event_and_not_after_a_place_is_free():
    """Chunks of 9, 9, 7 are submitted at 0 and one of 7 at 9, so the wait is at the head before its event, at 18."""
    timeline = Timeline(100)
    device = gpu(queues=1, ahead=3, chunks=2, timeline=timeline, event_latency_ns=40, **FREE)

    def program():
        device.copy(device.copies, 0, 0, 18)
        first = device.record(device.copies)
        device.copy(device.copies, 1, 1, 14)
        device.wait(device.copies, first)
        device.copy(device.copies, 2, 2, 15)
        yield from device.read_back(device.record(device.copies))

    device.run(program())
    starts = {each.expert: each.start_ns for each in reversed(timeline.slices) if each.track == "link"}
    assert starts == {0: 0, 1: 18, 2: 18 + 40}


def test_what_stood_behind_a_dropped_guess_is_looked_at_when_the_thread_is_free():
    """Submitted from 0 to 100 and from 100 to 200: then the engine is full. At 105 the guess behind them is dropped."""
    device, done = gpu(ahead=2, chunks=1, **FREE | {"enqueue_copy_ns": 100}), []

    def program():
        device.copy(device.copies, 0, 0, 500)
        device.copy(device.copies, 1, 1, 500)
        device.copy(device.prefetches, 2, 2, 500)
        done.append(device.record(device.prefetches))
        spend(device, 105)
        assert (yield from device.drop_unstarted({2})) == [2]

    device.run(program())
    device.environment.run()
    assert done[0].completed_ns == 200


def test_a_copy_into_a_slot_takes_the_place_of_an_older_one_that_nobody_reads_any_more():
    timeline = Timeline(100)
    device = gpu(ahead=1, timeline=timeline)

    def program():
        device.copy(device.prefetches, 1, 5, 300)
        spend(device, 5)
        device.copy(device.copies, 2, 5, 300)  # the same slot, while the guess' first chunk is under way
        yield from device.read_back(device.record(device.copies))

    device.run(program())
    device.environment.run()
    assert [each.expert for each in timeline.slices if each.track == "link"] == [1, 2, 2, 2]
    assert device.cancelled_bytes == 200


@pytest.mark.parametrize("seed", range(60))
def test_every_chunk_is_where_a_simulation_in_nanoseconds_has_it(seed):
    draw = random.Random(seed)
    chunks, ahead = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3, 50])
    timeline = Timeline(1000)
    device, copies, drops, answers = gpu(2, ahead, chunks, timeline), [], {}, {}

    def program():
        for name in range(draw.randrange(4, 25)):
            spend(device, 5 * draw.choice([0, 0, 1, 7, 40, 150]))
            queue, slot, size = draw.randrange(2), draw.randrange(6), draw.randrange(1, 900)
            ends = [size * piece // chunks for piece in range(chunks + 1)]
            device.copy((device.copies, device.prefetches)[queue], name, slot, size)
            bytes_of = [b - a for a, b in pairwise(ends)]
            copies.append(Copy(device.host_now_ns, queue, name, slot, bytes_of))
            if draw.random() < 0.2 and device.host_now_ns not in drops:
                spend(device, 5)
                asked = set(draw.sample(range(name + 1), (name + 1) // 2))
                drops[device.host_now_ns] = asked
                answers[device.host_now_ns] = yield from device.drop_unstarted(asked)

    device.run(program())
    device.environment.run()
    handed_bytes = sum(sum(copy.chunks_bytes) for copy in copies)
    expected, struck_bytes, taken = by_nanoseconds(
        copies, drops, ahead=ahead, enqueue_ns=3, start_up_ns=10, descriptor_ns=2
    )
    ran = [(each.expert, each.start_ns, each.end_ns) for each in timeline.slices if each.track == "link"]
    assert ran == expected
    assert answers == taken
    assert device.cancelled_bytes == struck_bytes
    starts = sum(1 for before, after in zip([(0, -1, -1), *ran], ran, strict=False) if after[1] > before[2])
    copied_bytes = sum(end - start - 2 for _, start, end in ran) - 10 * starts
    assert copied_bytes == handed_bytes - struck_bytes


@pytest.mark.parametrize("policy", ["prefetch-and-refetch", "speculate-and-execute", "lru", "all-resident"])
def test_runs_conserve_bytes_and_time_and_decide_by_the_clock(policy):
    config = RunConfig(
        trace=SHIPPED, model="olmoe-1b-7b", hardware="rtx-3090", policy=policy, cache_fraction=0.1, engine="promoe",
        warmup_tokens=0, measured_tokens=4, interval=False,
    )
    row = simulate(config).row()
    assert row["device"] == "simulated"
    assert row["clocked"] is True
    parts = ("attention", "experts", "exposed_copy", "host", "idle")
    assert row["decode_total_ns"] == sum(row[f"{part}_total_ns"] for part in parts)
    fetched = 0 if policy == "all-resident" else row["misses"] + row["prefetches"]
    assert row["bytes_copied"] == fetched * row["expert_bytes"] - row["cancelled_bytes"]
    assert row["cancelled_bytes"] >= row["prefetches_taken_back"] * row["expert_bytes"]
    assert (row["prefetches_taken_back"] > 0) == (policy == "prefetch-and-refetch")
