"""One pool for the tops of experts: the same bytes keep more of them, and every use copies the rest (MoEpic).

    share:    of an expert's bytes, what a slot keeps (θ); 1 keeps whole experts
    bottoms:  slots of the workspace that bottoms are copied into; 0 for two tokens' experts, half of them foreseen

MoEpic (arXiv 2509.08342) cuts each expert and caches the top. The workspace is paid from the same memory:
tops = (memory - bottoms · (1 - θ) · expert) / (θ · expert). A run's `per_layer` gives every layer as many tops.
"""

from dataclasses import replace

from moesim.capacity import Capacity, Memory
from moesim.errors import ConfigError
from moesim.parts import top_bytes
from moesim.policies.registry import register
from moesim.policies.roles import Budget


@register("budget", "split")
class Split(Budget):
    """Slots of `share` of an expert each."""

    def __init__(self, share: float = 0.5, bottoms: int = 0) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"policy: split[share={share:g}]: expected a share above 0, at most 1")
        if bottoms < 0:
            raise ConfigError(f"policy: split[bottoms={bottoms}]: must be 0 (two tokens' experts) or more")
        self._share = share
        self._bottoms = bottoms

    def divide(self, memory: Memory) -> Capacity:
        bottoms = self._bottoms or 2 * memory.top_k
        top = top_bytes(memory.expert_bytes, self._share)
        if top == memory.expert_bytes:
            slots, whole = memory.slots, Capacity(0)
        else:
            left_bytes = memory.slots * memory.expert_bytes - bottoms * (memory.expert_bytes - top)
            slots, whole = max(0, left_bytes) // top, Capacity(0, top_share=self._share, bottom_slots=bottoms)
        slots = min(slots, memory.layers * memory.experts)
        if memory.per_layer:
            return replace(whole, slots=slots // memory.layers, per_layer=True)
        return replace(whole, slots=slots)
