"""The clock of FastGPU over a list of operations, compiled: what `devices/fast.py` and `token_time.py` do, in one pass.

An operation is a code and an argument: a kernel, an event, or nothing. Events are numbered in the order in which they
are recorded. State between two calls is kept in `instants` and `pending`, so a trace is timed block by block.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.compiled.jit import compiled

Integers = NDArray[np.int64]

LAUNCH, COPY, RECORD_COMPUTE, RECORD_COPIES, WAIT_COMPUTE, WAIT_COPIES, READ_BACK, DECIDED, LATE, END = range(10)
"""What an operation is. LATE: was the event of a prefetch later than all else that the last kernel waited for?"""

(HOST, COMPUTE, KERNELS, COPIES, COPIED, COPY_LAST, CAPTURED, SYNCHRONIZED, LINK, LINK_SEEN, BEGIN, PENDING) = range(12)
"""Places of `instants`: of host and streams as in FastGPU, then what the engine has done and when the step began."""
INSTANTS = 12

(ENQUEUE_KERNEL, ENQUEUE_GRAPH, ENQUEUE_COPY, RECORD_EVENT, WAIT_EVENT, READ_BACK_NS, START_UP, LATENCY, LOOP_LAYER,
 SWITCH) = range(10)  # fmt: skip
"""Places of `figures`: those of the hardware that the device spends time by."""

(STEP_BEGIN, STEP_END, ATTENTION, EXPERTS, EXPOSED_COPY, HOST_TIME, IDLE, LATE_PREFETCHES, COPIES_MADE, LINK_BUSY,
 BLOCKED) = range(11)  # fmt: skip
"""Columns of what is found of each step."""
STEP_COLUMNS = 11


@compiled
def _gap(
    found: Any, start: int, end: int, under_way: Any, waits: int, blocked: Any, blocks: int, first: int
) -> int:
    """Split the time between two kernels over exposed copies, host and idle, as `token_time` does."""
    while first < blocks and blocked[first, 1] <= start:
        first += 1
    cursor = start
    outside = 0
    for number in range(waits + 1):
        if number < waits:
            issued, completed = under_way[number, 0], under_way[number, 1]
            if completed <= start:
                continue
        else:
            issued, completed = end, end
        if issued > cursor:
            piece_end = min(issued, end)
            idle = 0
            for each in range(first, blocks):
                if blocked[each, 0] >= piece_end:
                    break
                idle += max(0, min(blocked[each, 1], piece_end) - max(blocked[each, 0], cursor))
            found[IDLE] += idle
            found[HOST_TIME] += piece_end - cursor - idle
            outside += piece_end - cursor
            if issued >= end:
                break
        cursor = max(cursor, completed)
        if cursor >= end:
            break
    found[EXPOSED_COPY] += end - start - outside
    return first


@compiled
def _by_issue(under_way: Any, count: int) -> None:
    """Sort the copies that a kernel waits for by when they were enqueued; there are few."""
    for place in range(1, count):
        issued, completed = under_way[place, 0], under_way[place, 1]
        before = place - 1
        while before >= 0 and (
            under_way[before, 0] > issued or (under_way[before, 0] == issued and under_way[before, 1] > completed)
        ):
            under_way[before + 1, 0], under_way[before + 1, 1] = under_way[before, 0], under_way[before, 1]
            before -= 1
        under_way[before + 1, 0], under_way[before + 1, 1] = issued, completed


@compiled
def pass_time(
    codes: Any, arguments: Any, kernels: Any, figures: Integers, pieces: Integers, instants: Integers,
    completed: Integers, issued: Integers, events: int, bursts: Integers, found: Integers,
) -> None:
    """Time a block of operations.

    `kernels` [kernel, 4]: duration, launches, captured or not, attention or not. `completed`, `issued`: of each event,
    the first `events` of which are known already. `bursts` [burst, 2]: copies that the host has not yet seen begin;
    `instants[PENDING]` of them are. `found` [steps, STEP_COLUMNS] is filled.
    """
    wire = pieces.sum()
    most = len(codes) + 1
    runs = np.empty((most, 6), np.int64)  # kernel's class, start, end, busy, waits from, waits to
    waited = np.empty((most, 2), np.int64)
    blocked = np.empty((most, 2), np.int64)
    launched = waits = waits_from = blocks = step = ready = 0
    first_issued, burst_first, burst_count = -1, 0, instants[PENDING]
    for number in range(len(codes)):
        code, argument = codes[number], arguments[number]
        if code == COPY:
            enqueue = figures[ENQUEUE_COPY]
            first = instants[HOST] + enqueue
            last = instants[HOST] + len(pieces) * enqueue
            instants[HOST] = last
            if first_issued < 0:
                first_issued = first
            before = instants[COPIES]
            start = max(first, before)
            idle = instants[COPIED] < start
            if last <= start:
                end = start + wire + (figures[START_UP] if idle else 0)
            else:
                end, available = start, first
                for piece in range(len(pieces)):
                    idle = idle or available > end
                    end = max(end, available) + pieces[piece] + (figures[START_UP] if idle else 0)
                    idle = False
                    available += enqueue
            if instants[COPY_LAST] and first <= before:
                bursts[burst_count - 1, 1] += end - start
            else:
                bursts[burst_count, 0], bursts[burst_count, 1] = start, end - start
                burst_count += 1
            instants[COPIES] = instants[COPIED] = end
            instants[COPY_LAST] = 1
            found[step, COPIES_MADE] += 1
        elif code == LAUNCH:
            duration, launches, captured = kernels[argument, 0], kernels[argument, 1], kernels[argument, 2]
            if captured:
                first = last = instants[HOST] + figures[ENQUEUE_GRAPH]
            else:
                first = instants[HOST] + figures[ENQUEUE_KERNEL]
                last = instants[HOST] + launches * figures[ENQUEUE_KERNEL]
            instants[HOST] = last
            free = instants[KERNELS]
            start = max(instants[COMPUTE], first)
            if captured and not instants[CAPTURED]:
                start += max(0, figures[SWITCH] - (start - free))
            instants[CAPTURED] = captured
            end = max(start + duration, last + duration // launches)
            instants[COMPUTE] = instants[KERNELS] = end
            ready = max(first, free)
            run = runs[launched]
            run[0], run[1], run[2], run[3] = kernels[argument, 3], start, end, duration
            run[4], run[5] = waits_from, waits
            launched += 1
            waits_from = waits
        elif code in (RECORD_COMPUTE, RECORD_COPIES):
            instants[HOST] += figures[RECORD_EVENT]
            place = COMPUTE if code == RECORD_COMPUTE else COPIES
            instants[place] = max(instants[place], instants[HOST])
            completed[events] = instants[place]
            issued[events] = -1
            if code == RECORD_COPIES:
                issued[events] = first_issued
                first_issued = -1
                instants[COPY_LAST] = 0
            events += 1
        elif code in (WAIT_COMPUTE, WAIT_COPIES):
            instants[HOST] += figures[WAIT_EVENT]
            place = COMPUTE if code == WAIT_COMPUTE else COPIES
            arrived = max(instants[place], instants[HOST])
            done = completed[argument]
            instants[place] = done + figures[LATENCY] if done > arrived else arrived
            if code == WAIT_COPIES:
                instants[COPY_LAST] = 0
            else:
                waited[waits, 0], waited[waits, 1] = issued[argument], done
                waits += 1
        elif code == READ_BACK:
            done = completed[argument]
            instants[SYNCHRONIZED] = max(instants[SYNCHRONIZED], done)
            if done > instants[HOST]:
                blocked[blocks, 0], blocked[blocks, 1] = instants[HOST], done
                blocks += 1
                found[step, BLOCKED] += done - instants[HOST]
                instants[HOST] = done
            instants[HOST] += figures[READ_BACK_NS]
        elif code == DECIDED:
            instants[HOST] += figures[LOOP_LAYER]
        elif code == LATE:
            found[step, LATE_PREFETCHES] += completed[argument] > ready
        else:  # END: the step's ids are on the host
            here = found[step]
            cursor, first_block = instants[BEGIN], 0
            here[STEP_BEGIN], here[STEP_END] = cursor, instants[HOST]
            for each in range(launched):
                run = runs[each]
                start, end, busy = run[1], run[2], run[3]
                here[ATTENTION if run[0] else EXPERTS] += busy
                here[HOST_TIME] += end - start - busy
                if start > cursor:
                    under_way = waited[run[4] : run[5]]
                    _by_issue(under_way, run[5] - run[4])
                    first_block = _gap(here, cursor, start, under_way, run[5] - run[4], blocked, blocks, first_block)
                cursor = end
            if instants[HOST] > cursor:
                _gap(here, cursor, instants[HOST], waited[:0], 0, blocked, blocks, first_block)
            instants[BEGIN] = instants[HOST]
            while burst_first < burst_count and bursts[burst_first, 0] <= instants[SYNCHRONIZED]:
                instants[LINK] += bursts[burst_first, 1]
                burst_first += 1
            here[LINK_BUSY] = instants[LINK] - instants[LINK_SEEN]
            instants[LINK_SEEN] = instants[LINK]
            launched = waits = waits_from = blocks = 0
            step += 1
    for each in range(burst_first, burst_count):
        bursts[each - burst_first, 0], bursts[each - burst_first, 1] = bursts[each, 0], bursts[each, 1]
    instants[PENDING] = burst_count - burst_first
