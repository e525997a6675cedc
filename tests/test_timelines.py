"""The virtual GPU against whole timelines worked out by hand, and the named sum of each."""

import pytest

from moesim.devices.simulated import SimulatedGPU, SimulatedStream
from moesim.model import Kernel
from moesim.timeline import Timeline
from moesim.token_time import named_sum
from tests.oracles import timelines as by_hand
from tests.plain_hardware import PlainHardware, plain_engine


def hardware_of(scenario):
    costs = by_hand.COSTS
    return PlainHardware(
        link_bytes_per_s=scenario.bytes_per_s,
        copy_start_up_ns=by_hand.START_UP,
        copy_descriptor_ns=by_hand.DESCRIPTOR,
        enqueue_copy_ns=costs["copy"],
        enqueue_kernel_ns=costs["kernel"],
        record_event_ns=costs["record"],
        wait_event_ns=costs["wait"],
        read_back_ns=by_hand.READ_BACK,
    )


@pytest.mark.parametrize("scenario", by_hand.TIMELINES, ids=lambda scenario: scenario.name)
def test_every_instant_and_the_named_sum(scenario):
    timeline = Timeline(experts_per_layer=10**6)
    device = SimulatedGPU(hardware_of(scenario), plain_engine(), timeline)
    streams = {"compute": device.compute, "copy": device.copies}
    ran, returned, events, copies, issued = {}, {}, {}, {}, {}
    needed = {name for names in scenario.needs.values() for name in names}

    def program():
        for operation, stream_name, name, number in scenario.program:
            if stream_name not in streams:
                streams[stream_name] = SimulatedStream(device, stream_name)
            stream = streams[stream_name]
            if operation == "kernel":
                kind = "experts" if name.startswith("experts") else "attention"
                prepared = device.prepare(name, kind, 0, Kernel(name, 0, number, 0, 1, 0), 1)
                ran[name] = device.launch(stream, prepared)
            elif operation == "copy":
                copies[len(copies)] = name
                enqueued = device.copy(stream, len(copies) - 1, 0, number)
                if name in needed:  # wrong prefetches are nobody's
                    issued.setdefault(stream_name, enqueued)
            elif operation == "record":
                since = issued.pop(stream_name, None) if stream_name != "compute" else None
                events[name] = device.record(stream, since)
            elif operation == "wait":
                device.wait(stream, events[name])
            else:
                event = device.record(stream)
                device.host_now_ns -= by_hand.COSTS["record"]  # by hand, the read-back's own record costs nothing
                returned[name] = yield from device.read_back(event)

    device.run(program())
    got = {name: (run.start_ns, run.end_ns) for name, run in ran.items()}
    got |= {copies[s.expert]: (s.start_ns, s.end_ns) for s in timeline.slices if s.track == "link"}
    assert got == scenario.ran
    assert returned == scenario.returned
    stream_of = {name: stream for operation, stream, name, _ in scenario.program if operation == "copy"}
    on_streams = {copies[s.expert]: s.track for s in timeline.slices if s.name == "copy" and s.track != "link"}
    assert on_streams == {name: {"copy": "copies"}.get(stream, stream) for name, stream in stream_of.items()}
    end = max(returned.values())
    time = named_sum(0, end, device.runs, device.blocked)
    assert {
        "attention": time.attention_ns,
        "experts": time.experts_ns,
        "exposed_copy": time.exposed_copy_ns,
        "host": time.host_ns,
        "idle": time.idle_ns,
    } == {
        **{name: scenario.classes[name] for name in ("attention", "experts", "exposed_copy")},
        "host": scenario.classes["enqueue"] + scenario.classes["read_back"],
        "idle": 0,
    }
