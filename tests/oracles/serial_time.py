"""The time of a token as an explicit sum, where no copy overlaps a kernel: on-demand decoding, cache 0.

Assumptions, all of them checked or stated in the names of the arguments:

1. The host runs ahead: it enqueues everything that needs no answer from the GPU. It blocks in the router read-back of
   every layer and in the read-back of the new token's id.
2. Ids are on the host `read_back_ns` after the router kernel has ended; the host asks for them before that.
3. Then `host_before_first_copy_ns` of other host work (waits for the event that frees a slot) and one enqueue pass
   before the first copy can start. The copy engine is idle at that moment, so this copy pays the start-up; every later
   copy of the layer is enqueued before the engine is free, so none of them does.
4. A copy takes start-up (first only) + descriptor + bytes / rate, rounded half up to a nanosecond, each copy by itself.
5. The experts kernels start when the last copy has ended: everything up to the next router is enqueued by then. If it
   is not, the sum does not hold and ValueError is raised.
6. Kernels follow one another in one stream without a gap, unless the host has not enqueued them yet.
"""

from __future__ import annotations

from collections.abc import Sequence


def copy_bytes_ns(size_bytes: int, bytes_per_s: int) -> int:
    """size / rate in nanoseconds, rounded half up, in integers."""
    return (2 * size_bytes * 10**9 + bytes_per_s) // (2 * bytes_per_s)


def chain_ns(kernels_ns: Sequence[int], enqueue_ns: int) -> int:
    """From an idle host and GPU to the end of the last kernel: launches follow one another, each enqueued first."""
    end = 0
    for launches, kernel_ns in enumerate(kernels_ns, start=1):
        end = max(end, launches * enqueue_ns) + kernel_ns
    return end


def on_demand_token_ns(
    *,
    layers: int,
    copies_bytes: Sequence[int],  # of one layer, in the order of enqueueing
    bytes_per_s: int,
    copy_start_up_ns: int,
    copy_descriptor_ns: int,
    enqueue_copy_ns: int,
    host_before_first_copy_ns: int,
    host_after_last_copy_ns: int,  # record and wait for the event of the copies
    enqueue_launch_ns: int,  # one launch: a kernel in eager mode, a whole graph in graph mode
    before_router_ns: Sequence[int],  # GPU time of each launch of attention and router of one layer
    experts_ns: Sequence[int],  # of each launch of the experts of one layer
    head_ns: Sequence[int],  # of each launch after the last layer
    read_back_ns: int,
) -> int:
    """From the id of the last token on the host to the id of this one on the host."""
    copies_ns = copy_start_up_ns + sum(
        copy_descriptor_ns + copy_bytes_ns(size_bytes, bytes_per_s) for size_bytes in copies_bytes
    )
    follow_up = len(experts_ns) + max(len(before_router_ns), len(head_ns))
    host_ns = (len(copies_bytes) - 1) * enqueue_copy_ns + host_after_last_copy_ns + follow_up * enqueue_launch_ns
    if host_ns > copies_ns:
        raise ValueError("the copies end before the host has enqueued what follows: not a serial sum")
    if len(copies_bytes) > 1 and enqueue_copy_ns > copy_descriptor_ns + copy_bytes_ns(min(copies_bytes), bytes_per_s):
        raise ValueError("the engine may fall idle between two copies: not a serial sum")

    layer_after_router_ns = read_back_ns + host_before_first_copy_ns + enqueue_copy_ns + copies_ns + sum(experts_ns)
    return (
        chain_ns(before_router_ns, enqueue_launch_ns)
        + layers * layer_after_router_ns
        + (layers - 1) * sum(before_router_ns)
        + sum(head_ns)
        + read_back_ns
    )
