"""Host memory as a resource that copies and experts on the CPU share.

Each *flow* moves bytes through the memory: a copy at the link's rate, an expert on the CPU at the bytes of its
weights over the time that it takes alone. While the flows together want no more than the memory gives, each runs as
if alone. Beyond that all are slowed by one factor,

    rate of a flow = what it wants * min(1, capacity / sum of what all want)

so rates change only when a flow begins or ends (processor sharing). One factor for all, and not equal rates for all:
a memory controller serves requests in proportion to how many wait. Measured on two hosts of an H200, copies fell by
7 and 31 % and copying threads by 10 and 7 % when both ran: no single factor on the second host, but equal rates, which
would have left the copies as they were, are twice as far off (docs/cpu-experts.md).
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from moesim.hardware import nearest_ns


@dataclass(slots=True, eq=False)
class Flow:
    """Bytes under way: `left_ns` of them, in nanoseconds of running alone."""

    wants_bytes_per_s: float
    left_ns: float
    done: Any


class HostMemory:
    """The memory of one host, in a SimPy environment. Flows end at the nearest whole nanosecond."""

    def __init__(self, environment: simpy.Environment, capacity_bytes_per_s: float) -> None:
        self._environment = environment
        self._capacity = capacity_bytes_per_s
        self._flows: list[Flow] = []
        self._slowed = 1.0
        """How much longer everything takes at present than alone."""
        self._since_ns = 0
        self._changes = 0
        self.moved_bytes = 0.0
        """By all flows so far."""

    def flow(self, alone_ns: int, wants_bytes_per_s: float) -> Generator[Any, None, None]:
        """Move what takes `alone_ns` at the rate that the flow wants; ends when it is through."""
        if alone_ns <= 0:
            return
        self._advance()
        done = self._environment.event()
        self._flows.append(Flow(wants_bytes_per_s, float(alone_ns), done))
        self._share()
        yield done

    def _advance(self) -> None:
        """Let every flow move since the last change."""
        now = int(self._environment.now)
        passed_ns = (now - self._since_ns) / self._slowed
        for flow in self._flows:
            flow.left_ns -= passed_ns
            self.moved_bytes += flow.wants_bytes_per_s * passed_ns / 1e9
        self._since_ns = now

    def _share(self) -> None:
        """The flows have changed: share anew, and come back when the next one ends."""
        self._changes += 1
        if not self._flows:
            return
        self._slowed = max(1.0, sum(flow.wants_bytes_per_s for flow in self._flows) / self._capacity)
        first_ns = min(flow.left_ns for flow in self._flows)
        timeout = self._environment.timeout(max(0, nearest_ns(first_ns * self._slowed)), self._changes)
        timeout.callbacks.append(self._end)

    def _end(self, timeout: Any) -> None:
        if timeout.value != self._changes:  # the flows have changed since: another timeout stands for them
            return
        self._advance()
        through = [flow for flow in self._flows if nearest_ns(flow.left_ns * self._slowed) <= 0]
        self._flows = [flow for flow in self._flows if flow not in through]
        for flow in through:
            flow.done.succeed()
        self._share()
