"""The time of every step where nothing overlaps: a second virtual GPU of three numbers, host, kernels and copies.

It holds for a blocking read-back of each router's ids, no prefetch, and slots enough that an event needs one wave: a
layer's copies begin when its ids are on the host, all kernels before them have ended, and its experts wait for the last
of them. Kernels last longer than their launches take, so that the host is never what a read-back waits for.
"""

from __future__ import annotations

from collections.abc import Sequence


def step_ends_ns(
    misses: Sequence[Sequence[int]],  # by step and layer, how many experts are copied
    *,
    expert_bytes: int,
    pieces: int,  # copies of an expert, one behind the other
    bytes_per_s: int,
    start_up_ns: int,
    descriptor_ns: int,
    enqueue_copy_ns: int,
    enqueue_kernel_ns: int,
    read_back_ns: int,
    attention_ns: int,
    router_ns: int,
    experts_ns: int,
    head_ns: int,
) -> list[int]:
    """When the id of each step's token is on the host."""
    host, ends = 0, []
    copied = -1  # when the link fell idle

    def launch(kernel_ns: int, after: int) -> int:
        nonlocal host
        host += enqueue_kernel_ns
        return max(host, after) + kernel_ns

    for layers in misses:
        ran = host
        for missing in layers:
            ran = launch(router_ns, launch(attention_ns, ran))
            host = ran + read_back_ns
            for _ in range(missing * pieces):
                host += enqueue_copy_ns
                if host > copied:
                    copied = host + start_up_ns
                copied += descriptor_ns + round_half_up(expert_bytes // pieces * 10**9, bytes_per_s)
            ran = launch(experts_ns, max(ran, copied if missing else 0))
        host = launch(head_ns, ran) + read_back_ns
        ends.append(host)
    return ends


def round_half_up(numerator: int, denominator: int) -> int:
    """A quotient of whole numbers as the nearest whole number."""
    return (2 * numerator + denominator) // (2 * denominator)
