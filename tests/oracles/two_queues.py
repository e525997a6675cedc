"""A copy thread with two queues in front of one FIFO engine, nanosecond by nanosecond, from its description alone.

At every nanosecond, in this order: chunks end; the thread's submission reaches the engine; the host's drops happen;
a thread that is not submitting, with fewer than `ahead` chunks at the engine, begins to submit the next chunk:
demand first, each queue in its order, nothing before it was handed over. The first chunk of a copy strikes older
copies into the same slot from the queues.
"""

from dataclasses import dataclass


@dataclass
class Copy:
    at_ns: int
    queue: int
    name: int
    slot: int
    chunks_bytes: list[int]
    begun: int = 0


def simulate(copies, drops, *, ahead, enqueue_ns, start_up_ns, descriptor_ns, until_ns=1_000_000):
    """`copies` in the order of the host's program, `drops` as {instant: names}. One byte takes one nanosecond.

    Returns every chunk as (name, start, end), the bytes struck out, and the names that each drop took out.
    """
    waiting, at_engine, history = list(copies), [], []
    submitting = running = None
    last_end, struck_bytes, taken = -1, 0, {}

    def strike(victims):
        nonlocal struck_bytes
        for copy in victims:
            waiting.remove(copy)
            struck_bytes += sum(copy.chunks_bytes[copy.begun :])

    for now in range(until_ns):
        if running is not None and running[2] == now:
            history.append(running)
            last_end, running = now, None
        if submitting is not None and submitting[0] == now:
            at_engine.append(submitting[1:])
            submitting = None
        if running is None and at_engine:
            name, size = at_engine.pop(0)
            running = name, now, now + descriptor_ns + size + (start_up_ns if last_end < now else 0)
        if now in drops:
            gone = [c for c in waiting if c.queue == 1 and c.begun == 0 and c.name in drops[now] and c.at_ns <= now]
            taken[now] = [copy.name for copy in gone]
            strike(gone)
        if submitting is None and len(at_engine) + (running is not None) < ahead:
            for queue in (0, 1):
                line = [copy for copy in waiting if copy.queue == queue]
                if line and line[0].at_ns <= now:
                    copy = line[0]
                    if copy.begun == 0:
                        strike([c for c in waiting[: waiting.index(copy)] if c.slot == copy.slot])
                    submitting = now + enqueue_ns, copy.name, copy.chunks_bytes[copy.begun]
                    copy.begun += 1
                    if copy.begun == len(copy.chunks_bytes):
                        waiting.remove(copy)
                    break
        if not waiting and not at_engine and running is None and submitting is None:
            return history, struck_bytes, taken
    raise AssertionError("never done")
