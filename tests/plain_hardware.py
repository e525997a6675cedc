"""A machine of round numbers and an engine that launches one kernel a group, for instants that fit on paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.engine import EngineSpec, Launches
from moesim.model import Kernel


@dataclass(frozen=True)
class PlainHardware:
    """One byte takes one nanosecond unless said otherwise. Kernels last `kernels_ns`, or a nanosecond for each byte."""

    link_bytes_per_s: float = 1e9
    copy_start_up_ns: int = 10
    copy_descriptor_ns: int = 2
    enqueue_copy_ns: int = 3
    enqueue_kernel_ns: int = 5
    enqueue_graph_ns: int = 4
    record_event_ns: int = 0
    wait_event_ns: int = 0
    read_back_ns: int = 7
    event_latency_ns: int = 0
    loop_layer_ns: int = 0
    switch_ns: int = 0
    disk_bytes_per_s: float = 1e9
    disk_latency_ns: int = 50
    kernels_ns: Mapping[str, int] = field(default_factory=dict)

    def kernel_ns(self, kernel: Kernel, mode: str, launches: int) -> int:
        return self.kernels_ns.get(kernel.name, kernel.hbm_bytes)

    def kernel_source(self, kernel: Kernel, mode: str) -> str:
        return "measured"


def plain_engine(mode="eager", copies_per_expert=1):
    return EngineSpec(
        name="test", source="test", mode=mode, copies_per_expert=copies_per_expert, start="all", read_back="blocking",
        launches=Launches(attention=1, router=1, experts=1, experts_each=0, head=1),
    )
