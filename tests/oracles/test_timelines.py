"""The hand-worked timelines, gone over again line by line and nanosecond by nanosecond."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.serial_time import copy_bytes_ns, on_demand_token_ns
from tests.oracles.timelines import COSTS, DESCRIPTOR, ON_DEMAND, READ_BACK, START_UP, TIMELINES, Timeline


def walk(timeline: Timeline, copies: dict[str, tuple[int, int]] | None = None):
    """Follow the program once; `copies` gives the instants of the copies where another rule decides them."""
    host = 0
    engine_free = None
    free: dict[str, int] = {}  # stream: when what stands in it so far has ended
    fired: dict[str, int] = {}
    ran: dict[str, tuple[int, int]] = {}
    enqueued: dict[str, int] = {}
    returned: dict[str, int] = {}
    blocked: list[tuple[int, int]] = []
    for operation, stream, name, number in timeline.program:
        host += COSTS[operation]
        ready = max(host, free.get(stream, 0))
        if operation == "kernel":
            ran[name] = (ready, ready + number)
        elif operation == "copy" and copies is not None:
            ran[name] = copies[name]
        elif operation == "copy":
            start = ready if engine_free is None else max(ready, engine_free)
            start_up = 0 if start == engine_free else START_UP
            ran[name] = (start, start + start_up + DESCRIPTOR + copy_bytes_ns(number, timeline.bytes_per_s))
            engine_free = ran[name][1]
        elif operation == "record":
            fired[name] = ready
        elif operation == "wait":
            free[stream] = max(free.get(stream, 0), fired[name])
        elif operation == "read_back":
            blocked.append((host, ran[name][1] + READ_BACK))
            host = returned[name] = blocked[-1][1]
        if operation in ("kernel", "copy"):
            enqueued[name] = host
            free[stream] = ran[name][1]
    return ran, returned, enqueued, blocked


def engine_that_stays(timeline: Timeline) -> dict[str, tuple[int, int]]:
    """Copies of several streams on one engine, which leaves a stream only when nothing there is ready."""
    enqueued = walk(timeline)[2]
    waiting: dict[str, list[tuple[str, int]]] = {}
    for operation, stream, name, number in timeline.program:
        if operation == "copy":
            waiting.setdefault(stream, []).append((name, number))
    now, served, busy, ran = 0, None, False, {}
    while any(waiting.values()):
        ready = {stream: queue[0] for stream, queue in waiting.items() if queue and enqueued[queue[0][0]] <= now}
        if not ready:
            now, busy = now + 1, False
            continue
        served = served if served in ready else min(ready, key=lambda stream: enqueued[ready[stream][0]])
        name, size_bytes = waiting[served].pop(0)
        end = now + (0 if busy else START_UP) + DESCRIPTOR + copy_bytes_ns(size_bytes, timeline.bytes_per_s)
        ran[name], now, busy = (now, end), end, True
    return ran


def classes(timeline: Timeline, *, kernel_enqueued: bool) -> dict[str, int]:
    ran, returned, enqueued, blocked = walk(timeline, engine_that_stays(timeline) if timeline.engine_order else None)
    kernels = {name for operation, _, name, _ in timeline.program if operation == "kernel"}
    found = dict.fromkeys(("attention", "experts", "exposed_copy", "enqueue", "read_back"), 0)
    for now in range(max(returned.values())):
        running = [name for name in kernels if ran[name][0] <= now < ran[name][1]]
        following = min((name for name in kernels if ran[name][0] > now), key=lambda name: ran[name], default=None)
        awaited = [copy for copy in timeline.needs.get(following, ()) if enqueued[copy] <= now < ran[copy][1]]
        if running:
            found["experts" if running[0].startswith("experts") else "attention"] += 1
        elif awaited and (not kernel_enqueued or enqueued[following] <= now):
            found["exposed_copy"] += 1
        elif any(start <= now < end for start, end in blocked):
            found["read_back"] += 1
        else:
            found["enqueue"] += 1
    return found


@pytest.mark.parametrize("timeline", TIMELINES, ids=lambda timeline: timeline.name)
def test_instants_worked_out_by_hand(timeline):
    copies = engine_that_stays(timeline) if timeline.engine_order else None
    ran, returned, _, _ = walk(timeline, copies)
    assert ran == timeline.ran
    assert returned == timeline.returned
    if copies:
        assert tuple(copies) == timeline.engine_order


@pytest.mark.parametrize("timeline", TIMELINES, ids=lambda timeline: timeline.name)
def test_named_sum_worked_out_by_hand(timeline):
    assert classes(timeline, kernel_enqueued=False) == timeline.classes
    assert classes(timeline, kernel_enqueued=True) == timeline.classes_if_waiting_needs_the_kernel_enqueued
    end = max(timeline.returned.values())
    assert sum(timeline.classes.values()) == end
    assert sum(timeline.classes_if_waiting_needs_the_kernel_enqueued.values()) == end


def serial(program_layers, copies, attention, router, experts, head, bytes_per_s):
    return on_demand_token_ns(
        layers=program_layers,
        copies_bytes=copies,
        bytes_per_s=bytes_per_s,
        copy_start_up_ns=START_UP,
        copy_descriptor_ns=DESCRIPTOR,
        enqueue_copy_ns=COSTS["copy"],
        host_before_first_copy_ns=COSTS["wait"],
        host_after_last_copy_ns=COSTS["record"] + COSTS["wait"],
        enqueue_launch_ns=COSTS["kernel"],
        before_router_ns=(*attention, router),
        experts_ns=experts,
        head_ns=head,
        read_back_ns=READ_BACK,
    )


def test_serial_sum_of_the_first_timeline():
    # that program has no wait before its first copy
    expected = ON_DEMAND.returned["head"] + COSTS["wait"]
    assert serial(1, (100, 100), (50,), 10, (40,), (30,), 10**9) == expected == 403


times = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(tuple)


@settings(max_examples=200)
@given(
    layers=st.integers(1, 4),
    copies=st.lists(st.integers(100, 900), min_size=1, max_size=5).map(tuple),
    attention=times,
    router=st.integers(1, 30),
    experts=times,
    head=times,
    bytes_per_s=st.sampled_from((10**9, 7 * 10**8, 1_234_567_890)),
)
def test_serial_sum_equals_a_walk_through_the_program(layers, copies, attention, router, experts, head, bytes_per_s):
    program = []
    for layer in range(layers):
        program += [("kernel", "compute", f"attention {layer}.{n}", ns) for n, ns in enumerate(attention)]
        program += [("kernel", "compute", f"router {layer}", router), ("read_back", "compute", f"router {layer}", None)]
        if layer:
            program += [("wait", "copy", f"slots free {layer - 1}", None)]
        else:
            program += [("record", "compute", "start", None), ("wait", "copy", "start", None)]
        program += [("copy", "copy", f"expert {layer}.{n}", size) for n, size in enumerate(copies)]
        program += [("record", "copy", f"copied {layer}", None), ("wait", "compute", f"copied {layer}", None)]
        program += [("kernel", "compute", f"experts {layer}.{n}", ns) for n, ns in enumerate(experts)]
        program += [("record", "compute", f"slots free {layer}", None)]
    program += [("kernel", "compute", f"head {n}", ns) for n, ns in enumerate(head)]
    program += [("read_back", "compute", f"head {len(head) - 1}", None)]
    timeline = Timeline("serial", tuple(program), {}, {}, {}, {}, {}, bytes_per_s=bytes_per_s)
    try:
        expected = serial(layers, copies, attention, router, experts, head, bytes_per_s)
    except ValueError:
        return  # the host is late somewhere: not a serial sum
    # one record more than the sum knows stands between the first ids and the first copy
    assert walk(timeline)[1][f"head {len(head) - 1}"] == expected + COSTS["record"]
