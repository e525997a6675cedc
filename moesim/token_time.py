"""The time of a token as a named sum that adds up exactly, in integer nanoseconds.

Each instant from the previous token's end to this one's belongs to the first class that applies:

    attention     dense kernels run
    experts       expert kernels run, on the GPU or on the CPU
    exposed copy  nothing runs, and the next kernel waits for a copy that has been enqueued
    host          nothing runs, and the host thread is at work: launching, deciding, reading back
    idle          none of these
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moesim.devices.base import Event, KernelRun


@dataclass(slots=True)
class TokenTime:
    """Nanoseconds by class; the total is their sum by construction of the sweep, and asserted by its caller."""

    attention_ns: int = 0
    experts_ns: int = 0
    exposed_copy_ns: int = 0
    host_ns: int = 0
    idle_ns: int = 0

    def add(self, other: "TokenTime", times: int = 1) -> None:
        """Add another time, `times` over."""
        self.attention_ns += times * other.attention_ns
        self.experts_ns += times * other.experts_ns
        self.exposed_copy_ns += times * other.exposed_copy_ns
        self.host_ns += times * other.host_ns
        self.idle_ns += times * other.idle_ns

    @property
    def total_ns(self) -> int:
        """The token's time."""
        return self.attention_ns + self.experts_ns + self.exposed_copy_ns + self.host_ns + self.idle_ns


def named_sum(
    begin_ns: int,
    end_ns: int,
    runs: Sequence[KernelRun],
    blocked: Sequence[tuple[int, int]],
    cpu_runs: Sequence[tuple[int, int]] = (),
) -> TokenTime:
    """Split [begin, end) over the classes.

    `runs` in stream order; `blocked` intervals of the host and `cpu_runs` of experts on the CPU in time order.
    """
    time = TokenTime()
    cursor, first_blocked = begin_ns, 0
    for run in runs:
        busy = run.busy_ns
        if run.kind == "attention":
            time.attention_ns += busy
        else:
            time.experts_ns += busy
        # Kernels of a group that the host launches too slowly leave gaps in which the host is busy launching.
        time.host_ns += run.end_ns - run.start_ns - busy
        if run.start_ns > cursor:
            gap = cursor, run.start_ns
            for start, end in _beside_cpu(time, *gap, cpu_runs) if cpu_runs else (gap,):
                first_blocked = _gap(time, start, end, run.waits, blocked, first_blocked)
        cursor = run.end_ns
    for start, end in _beside_cpu(time, cursor, end_ns, cpu_runs):
        first_blocked = _gap(time, start, end, (), blocked, first_blocked)
    return time


def _beside_cpu(
    time: TokenTime, start: int, end: int, cpu_runs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The parts of a gap in which no expert ran on the CPU; the others are the experts' time."""
    cursor = start
    for since, until in cpu_runs[max(0, bisect_right(cpu_runs, (start, start)) - 1) :]:
        if since >= end:
            break
        if since > cursor:
            yield cursor, since
        if until > cursor:
            time.experts_ns += min(until, end) - max(since, cursor)
            cursor = min(until, end)
    if cursor < end:
        yield cursor, end


def _gap(
    time: TokenTime, start: int, end: int, waits: Sequence[Event], blocked: Sequence[tuple[int, int]], first: int
) -> int:
    while first < len(blocked) and blocked[first][1] <= start:
        first += 1
    for piece_start, piece_end in _outside(start, end, waits):
        length = piece_end - piece_start
        idle = 0
        for blocked_start, blocked_end in blocked[first:]:
            if blocked_start >= piece_end:
                break
            idle += max(0, min(blocked_end, piece_end) - max(blocked_start, piece_start))
        time.idle_ns += idle
        time.host_ns += length - idle
        time.exposed_copy_ns -= length
    time.exposed_copy_ns += end - start
    return first


def _outside(start: int, end: int, waits: Sequence[Event]) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) in which no awaited copy was under way."""
    under_way = sorted(
        (event.issued_ns, event.completed_ns)
        for event in waits
        if event.issued_ns is not None and event.completed_ns is not None and event.completed_ns > start
    )
    cursor = start
    for issued, completed in under_way:
        if issued > cursor:
            yield cursor, min(issued, end)
            if issued >= end:
                return
        cursor = max(cursor, completed)
        if cursor >= end:
            return
    yield cursor, end
