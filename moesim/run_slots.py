"""How many slots a run has, and the bytes of whatever its memory for experts holds."""

from math import ceil

from moesim.capacity import Capacity, Memory
from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.parts import Parts
from moesim.policies.composition import Policy
from moesim.run_config import RunConfig
from moesim.trace import Trace
from moesim.versions import Versions


def capacity_of(
    policy: Policy, config: RunConfig, model: ModelSpec, trace: Trace, largest: tuple[int, int],
    hidden: float = 0.0,
) -> Capacity:
    """The slots of a run (the house's section 7). Raises ConfigError when they cannot hold one token's experts.

    `hidden`: how many experts are copied while a layer runs, for budgets that weigh the machine.
    """
    layers, experts = len(model.moe_layers), model.experts
    fraction = {"none": 0.0, "all": 1.0, "any": config.cache_fraction}[policy.spec.cache]
    if policy.spec.cache == "all":
        return Capacity(layers * experts, everything=True)
    if fraction == 0.0:
        return Capacity(sum(largest), workspace=True, low_slots=sum(largest) if policy.on_miss.low else 0)
    # Written as a decimal, a fraction times a whole number must not lose a slot to binary rounding.
    slots = int(fraction * layers * experts + 1e-9)
    if policy.draft.longest:  # the draft's experts take the place of the cache's
        slots = max(0, slots - ceil(draft_bytes(policy, model) / model.expert_bytes))
    capacity = policy.budget.divide(
        Memory(
            slots, layers, experts, model.top_k, model.expert_bytes,
            model.expert_bytes_in(policy.on_miss.low or model.expert_precision), trace, config.per_layer, hidden,
        )
    )
    fewest = min(capacity.slots, capacity.low_slots) if policy.on_miss.low else capacity.slots
    if fewest < model.top_k:
        low = f" in {policy.on_miss.low}" if fewest < capacity.slots else ""
        beside = " beside its draft" if policy.draft.longest else ""
        raise ConfigError(
            f"cache_fraction {config.cache_fraction:g} of {model.name}{beside} is {fewest} slots{low}"
            f"{' per layer' if capacity.per_layer else ''}, fewer than its top-k {model.top_k}: give 0 or more"
        )
    return capacity


def draft_bytes(policy: Policy, model: ModelSpec) -> int:
    """What a draft keeps on the GPU beside the model: all routed experts in its precision."""
    if not policy.draft.longest:
        return 0
    return len(model.moe_layers) * model.experts * model.with_experts_in(policy.draft.precision).expert_bytes


def host_slots(config: RunConfig, model: ModelSpec) -> int:
    """How many experts host memory holds, at least the one that passes through."""
    return max(1, int(config.host_cache_fraction * len(model.moe_layers) * model.experts + 1e-9))


def versions_of(policy: Policy, capacity: Capacity, model: ModelSpec) -> Versions:
    """What slots can hold of an expert."""
    return Parts(model, top_share=capacity.top_share) if capacity.bottom_slots else Versions(model, policy.on_miss.low)


def slot_bytes(slots: int, capacity: Capacity, policy: Policy, model: ModelSpec) -> int:
    """Bytes of all slots, each at the size of what it holds."""
    versions = versions_of(policy, capacity, model)
    second = capacity.total_low(len(model.moe_layers)) + capacity.bottom_slots
    return (slots - second) * versions.first_bytes + second * versions.second_bytes
