"""What a cycle of drafting and verifying costs, as plain numbers: all that a governor knows of machine and model.

They are the centre's figures, added up without queueing, so a governor decides without a clock.
"""

from dataclasses import dataclass

from moesim.engine import EngineSpec
from moesim.hardware import Hardware
from moesim.model import Kernel, ModelSpec, Precision


@dataclass(frozen=True)
class CycleCosts:
    """Nanoseconds."""

    draft_pass_ns: int
    """One token of the draft."""
    verify_ns: tuple[int, ...]
    """At n - 1: a step of n tokens with all its experts resident."""
    copy_start_up_ns: int
    """T_0: before the first byte of a burst of copies."""
    copy_ns: int
    """S/B: one expert on the link."""


def cycle_costs(
    model: ModelSpec, precision: Precision, hardware: Hardware, engine: EngineSpec, context_tokens: int, longest: int
) -> CycleCosts:
    """The costs of drafting up to `longest` tokens at a context of `context_tokens`."""
    captured = engine.mode == "graph"

    def group_ns(name: str, kernel: Kernel) -> int:
        """A kernel group, or its launches where the host takes longer with them."""
        launches = engine.launched(name, kernel.experts if name == "experts" else 0)
        alone = captured and (name != "experts" or engine.experts_captured)
        host_ns = hardware.enqueue_graph_ns if alone else launches * hardware.enqueue_kernel_ns
        return max(hardware.kernel_ns(kernel, engine.mode, launches), host_ns)

    def pass_ns(shape: ModelSpec, tokens: int, experts: int, between_ns: int) -> int:
        moe = (
            group_ns("attention", shape.attention_kernel(tokens, context_tokens))
            + group_ns("router", shape.router_kernel(tokens))
            + group_ns("experts", shape.experts_kernel(experts, tokens * shape.top_k))
            + between_ns
        )
        dense = group_ns("attention", shape.dense_layer_kernel(tokens, context_tokens)) if shape.dense_layers else 0
        head = group_ns("head", shape.head_kernel(tokens))
        return len(shape.moe_layers) * moe + len(shape.dense_layers) * dense + head

    def verify_ns(tokens: int) -> int:
        # tokens that choose evenly and independently; real ones are more alike
        distinct = round(model.experts * (1 - (1 - model.top_k / model.experts) ** tokens))
        return pass_ns(model, tokens, max(model.top_k, distinct), hardware.read_back_ns)

    return CycleCosts(
        draft_pass_ns=pass_ns(model.with_experts_in(precision), 1, model.top_k, 0),
        verify_ns=tuple(verify_ns(tokens) for tokens in range(1, longest + 2)),
        copy_start_up_ns=hardware.copy_start_up_ns,
        copy_ns=round(
            model.expert_bytes * 1e9 / hardware.link_bytes_per_s
            + engine.copies_per_expert * hardware.copy_descriptor_ns
        ),
    )
