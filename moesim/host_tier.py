"""Host memory that holds only a share of the experts; the rest is on disk.

An expert that is not in host memory is read from disk into it, and its copy to the GPU waits for that read. Reads are
a stream of their own, in order, so reads, copies and kernels overlap; whoever prefetches hides the disk too.

Who is in host memory is decided in issue order, without the clock, least recently copied out first. What is on the
GPU keeps its place in host memory until that order takes it. A read goes into the place of whoever leaves, so it
waits for that one's last copy to the GPU, on each stream that copied it. At the start host memory holds as many
experts as fit, as evenly over the layers as can be: the first experts of each.
"""

from collections import OrderedDict
from itertools import product
from typing import Any

from moesim.devices.base import DeviceWithDisk, Event


class HostTier:
    """The experts in host memory, of `layers * experts`; `slots` fit."""

    def __init__(self, slots: int, layers: int, experts: int, expert_bytes: int, device: DeviceWithDisk[Any]) -> None:
        assert slots >= 1, "an expert passes through host memory"
        self.device = device
        self.reads = 0
        """So far."""
        self._expert_bytes = expert_bytes
        by_turns = (layer * experts + expert for expert, layer in product(range(experts), range(layers)))
        self._held: OrderedDict[int, dict[Any, Event]] = OrderedDict(
            (expert, {}) for expert, _ in zip(by_turns, range(slots), strict=False)
        )
        """By last use; with each expert's last copy to the GPU, by stream."""
        self._read_for: dict[int, tuple[Any, Event]] = {}
        """Of those that were read: the stream that waits for it, and when it is here."""

    def bring(self, stream: Any, expert: int) -> int | None:
        """Make `stream` wait until an expert is in host memory; when its read was enqueued, None without a read."""
        device = self.device
        if expert in self._held:
            self._held.move_to_end(expert)
            if expert in self._read_for and self._read_for[expert][0] is not stream:
                device.wait(stream, self._read_for[expert][1])
            return None
        leaver, copied = self._held.popitem(last=False)
        self._read_for.pop(leaver, None)
        for last_copy in copied.values():
            device.wait(device.disk, last_copy)
        enqueued_ns = device.read(expert, self._expert_bytes)
        here = device.record(device.disk)
        device.wait(stream, here)
        self._held[expert] = {}
        self._read_for[expert] = stream, here
        self.reads += 1
        return enqueued_ns

    def copied(self, stream: Any, expert: int) -> None:
        """The expert's copy to the GPU has just been enqueued."""
        self._held[expert][stream] = self.device.record(stream)
