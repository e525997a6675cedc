"""What one expert takes on a machine, as the plain numbers that a policy is given (`moesim.policies.costs`)."""

from pathlib import Path

from moesim.engine import EngineSpec
from moesim.hardware import Hardware, nearest_ns
from moesim.model import ModelSpec
from moesim.policies.costs import Costs
from moesim.requests.serving import StreamConfig
from moesim.window import most_tokens


def largest_step(path: Path, stop: int, stream: StreamConfig | None) -> int:
    """The most tokens that any step can have: as recorded, or as a stream's scheduler may put together."""
    if stream is None:
        return most_tokens(path, stop, "step")
    return max(most_tokens(path, stop, "request"), stream.max_prefill_tokens, stream.max_batch)


def hidden_experts(hardware: Hardware, engine: EngineSpec, model: ModelSpec, context_tokens: int) -> float:
    """How many experts the link copies while a MoE layer of one token runs, the host's launches included."""
    ns = 0
    for kind, kernel, experts in (
        ("attention", model.attention_kernel(1, context_tokens), 0),
        ("router", model.router_kernel(1), 0),
        ("experts", model.experts_kernel(model.top_k, model.top_k), model.top_k),
    ):
        launches = engine.launched(kind, experts)
        ns += max(hardware.kernel_ns(kernel, engine.mode, launches), launches * hardware.enqueue_kernel_ns)
    return ns * hardware.link_bytes_per_s / 1e9 / model.expert_bytes


def costs_of(hardware: Hardware, engine: EngineSpec, model: ModelSpec, tokens: int) -> Costs:
    """Of one expert, for 1 to `tokens` tokens. The profile must have the CPU's figures (`HardwareSpec.check_cpu`)."""
    numbers = range(1, tokens + 1)
    launches = engine.launched("experts", 1)
    return Costs(
        cpu_ns_by_tokens=tuple(hardware.cpu_expert_ns(model.cpu_expert_kernel(each)) for each in numbers),
        gpu_ns_by_tokens=tuple(
            hardware.kernel_ns(model.experts_kernel(1, each), engine.mode, launches) for each in numbers
        ),
        copy_ns=engine.copies_per_expert * hardware.copy_descriptor_ns
        + nearest_ns(model.expert_bytes * 1e9 / hardware.link_bytes_per_s),
        link_bytes_per_s=hardware.link_bytes_per_s,
        host_bytes_per_s=hardware.host_bytes_per_s,
    )
