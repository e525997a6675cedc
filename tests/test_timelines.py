"""The virtual GPU against whole timelines worked out by hand, and the named sum of each."""

from dataclasses import dataclass

import pytest

from moesim.devices.simulated import SimulatedGPU, SimulatedStream
from moesim.engine import EngineSpec, Launches
from moesim.model import Kernel
from moesim.timeline import Timeline
from moesim.token_time import named_sum
from tests.oracles import timelines as by_hand


@dataclass(frozen=True)
class Figures:
    link_bytes_per_s: float
    copy_start_up_ns: int = by_hand.START_UP
    copy_descriptor_ns: int = by_hand.DESCRIPTOR
    enqueue_copy_ns: int = by_hand.COSTS["copy"]
    enqueue_kernel_ns: int = by_hand.COSTS["kernel"]
    enqueue_graph_ns: int = 0
    record_event_ns: int = by_hand.COSTS["record"]
    wait_event_ns: int = by_hand.COSTS["wait"]
    read_back_ns: int = by_hand.READ_BACK

    def kernel_ns(self, kernel: Kernel, mode: str, launches: int) -> int:
        return kernel.hbm_bytes


ENGINE = EngineSpec(
    name="test", source="test", mode="eager", copies_per_expert=1, start="all", read_back="blocking",
    launches=Launches(attention=1, router=1, experts=1, experts_each=0, head=1),
)


@pytest.mark.parametrize("scenario", by_hand.TIMELINES, ids=lambda scenario: scenario.name)
def test_every_instant_and_the_named_sum(scenario):
    timeline = Timeline(experts_per_layer=10**6)
    device = SimulatedGPU(Figures(scenario.bytes_per_s), ENGINE, timeline)
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
