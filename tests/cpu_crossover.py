"""The fewest tokens per expert from which fetching beats the CPU, from a machine's figures alone.

A layer's m missing experts, each with t tokens, engine `eager`: all copies, then one kernel group; or the CPU, one
after another. Both wait for the same attention before and end in the same attention behind, so they are compared from
the ids on the host to the results on the GPU:

    link: one enqueue, a start-up, m copies, an event, the kernels
    CPU:  activations (over 4 KiB), m experts, an event, the result's way (start-up, descriptor, bytes over 4 KiB)
"""

from dataclasses import replace

from moesim.engine import EngineSpec

MOST_TOKENS = 100_000


def link_ns(hardware, model, engine, tokens):
    m = model.top_k
    wire = model.expert_bytes * 1e9 / hardware.link_bytes_per_s
    copies = m * (engine.copies_per_expert * hardware.copy_descriptor_ns + wire)
    kernel = hardware.kernel_ns(model.experts_kernel(m, m * tokens), engine.mode, engine.launched("experts", m))
    return hardware.enqueue_copy_ns + hardware.copy_start_up_ns + copies + hardware.event_latency_ns + kernel


def cpu_ns(hardware, model, tokens):
    size = 2 * tokens * model.hidden
    way = size * 1e9 / hardware.link_bytes_per_s if size > 4096 else 0
    expert = hardware.kernel_table.look_up(replace(model.experts_kernel(1, tokens), name="cpu expert"), "eager")
    if expert is None:
        read = model.expert_bytes / hardware.cpu_bytes_per_s
        computed = 2 * tokens * model.expert_weights / hardware.cpu_flops_per_s
        expert = hardware.cpu_expert_floor_ns + max(read, computed) * 1e9
    back = hardware.copy_start_up_ns + hardware.copy_descriptor_ns + way
    return way + model.top_k * expert + 2 * hardware.event_latency_ns + back


def crossover_tokens(hardware, model):
    """The fewest tokens of every expert at which the link is not slower: 1 where the CPU never wins."""
    engine = EngineSpec.load("eager")

    def cpu_wins(tokens):
        return cpu_ns(hardware, model, tokens) < link_ns(hardware, model, engine, tokens)

    low, high = 0, 1  # the CPU wins at `low` (or it is 0), the link at `high`
    while cpu_wins(high):
        low, high = high, 2 * high
        assert high < MOST_TOKENS, "the CPU wins always"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cpu_wins(middle) else (low, middle)
    return high
