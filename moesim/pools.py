"""The pools of a capacity, each with slots of its own numbering and a fresh eviction rule of the policy."""

from moesim.cache import ExpertCache
from moesim.capacity import Capacity
from moesim.events import UseList
from moesim.policies.composition import Policy
from moesim.policies.roles import Evict
from moesim.precision_pools import PlainNumbers, PrecisionEvict, PrecisionPools


def new_pools(
    policy: Policy, layers: int, experts: int, capacity: Capacity, largest_event: int, future: UseList | None
) -> tuple[list[Evict], list[ExpertCache], int]:
    """Rules and pools, one each for all layers together or for every layer; and the slots of them all.

    A pool's slots in low precision come behind its others. Staging, for rules with `bypass`, holds `largest_event`.
    """
    number = layers if capacity.per_layer else 1
    evicts, pools = policy.new_evictions(number), []
    lows = policy.new_evictions(number) if capacity.low_slots else []
    staging = largest_event if policy.on_miss.fetches and any(evict.bypass for evict in evicts) else 0
    first_slot, first_low = 0, layers * experts
    made: list[Evict] = []
    for place, evict in enumerate(evicts):
        slots, ordered = capacity.slots_of(place), not capacity.workspace
        evict.prepare(layers, experts, slots, future if evict.oracle else None)
        pool = ExpertCache(
            slots, evict, layers, experts, first_slot=first_slot, staging=staging, ordered=ordered
        )
        first_slot += slots + staging
        if lows:
            lows[place].prepare(layers, experts, capacity.low_slots, None)
            low = ExpertCache(
                capacity.low_slots, PlainNumbers(lows[place], first_low), layers, experts,
                first_slot=first_slot, ordered=ordered, first_expert=first_low,
            )
            first_slot += capacity.low_slots
            pool, evict = PrecisionPools(pool, low, first_low), PrecisionEvict(evict, lows[place], first_low)
        made.append(evict)
        pools.append(pool)
    return made, pools, first_slot
