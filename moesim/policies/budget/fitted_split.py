"""MoEpic's cache configuration: how large the top is and how many tops each layer keeps (arXiv 2509.08342).

    exposed(l, c, θ):  of layer l with c tops, what is left to copy when the layer before it has run:
                       the sum over events of max(0, accesses·(1 - θ) + misses(c)·θ - hidden), in experts
    for each θ:        start with even layers; move 1 % of the slots from the layer that loses least to the one that
                       gains most, until nothing gains
    take the θ with the least exposed, the largest of equal ones

`hidden` is how many experts the link copies while a layer runs, a number of the machine: that much of what is foreseen
costs nothing. Misses are LRU's and exact, event by event, from the first decoded tokens of the trace. The paper has a θ
for each layer; here all layers have the same, so that every slot holds a top of any layer's.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.capacity import Capacity, Memory
from moesim.curve.accesses import Numbers
from moesim.curve.event_misses import event_misses
from moesim.errors import ConfigError
from moesim.policies.budget.best_split import profile_of
from moesim.policies.budget.split import Split
from moesim.policies.registry import register
from moesim.policies.roles import Budget

SHARES = [twentieths / 20 for twentieths in range(20, 0, -1)]


@register("budget", "fitted-split")
class FittedSplit(Budget):
    """`profile`: decoded tokens that misses are taken from, 0 for all; `bottoms`: slots of the workspace, as `split`.

    `hidden`: experts copied while a layer runs, where it is not to be the machine's.
    """

    weighs_machine = True

    def __init__(self, profile: int = 256, bottoms: int = 0, hidden: float | None = None) -> None:
        if profile < 0:
            raise ConfigError(f"policy: fitted-split[profile={profile}]: must be 0 (the whole trace) or more")
        if hidden is not None and hidden < 0:
            raise ConfigError(f"policy: fitted-split[hidden={hidden:g}]: must be 0 (nothing is hidden) or more")
        self._profile = profile
        self._bottoms = bottoms
        self._hidden = hidden

    def divide(self, memory: Memory) -> Capacity:
        if memory.per_layer:
            raise ConfigError("policy: fitted-split sizes the layers itself: leave per_layer out")
        misses, asked = event_misses(profile_of(memory.trace, self._profile))
        hidden = memory.hidden_experts if self._hidden is None else self._hidden
        least, best = np.inf, None
        for share in SHARES:
            capacity = Split(share, self._bottoms).divide(memory)
            if capacity.slots < memory.layers * memory.top_k:
                continue
            exposed = exposed_experts(misses, asked, share, hidden)
            slots = move_memory(exposed, capacity.slots, memory.top_k)
            cost = float(exposed[np.arange(memory.layers), slots].sum())
            if cost < least:
                least, best = cost, (slots, capacity)
        if best is None:
            raise ConfigError(
                f"policy: fitted-split of {memory.slots} slots: {memory.layers} layers need {memory.top_k} each at"
                " least"
            )
        slots, capacity = best
        divided = Capacity.of_each_layer(slots)
        return replace(divided, top_share=capacity.top_share, bottom_slots=capacity.bottom_slots)


def exposed_experts(misses: Numbers, asked: Numbers, share: float, hidden: float) -> NDArray[np.float64]:
    """[layers, experts + 1]: what no layer's time hides, by the tops of a layer, in whole experts of the profile."""
    brought = asked[:, None] * (1 - share) + misses * share
    exposed: NDArray[np.float64] = np.maximum(0.0, brought - hidden).sum(2)
    return exposed


def move_memory(cost: NDArray[np.float64], total: int, fewest: int) -> list[int]:
    """Slots of each layer, at most `total`: even ones, moved 1 % at a time while that lessens the sum of `cost`."""
    layers, most = cost.shape[0], cost.shape[1] - 1
    rest = total - total // layers * layers
    slots = np.minimum(most, np.full(layers, total // layers) + (np.arange(layers) < rest))
    step, each = max(1, total // 100), np.arange(layers)
    while True:
        now = cost[each, slots]
        gains = np.where(slots + step <= most, now - cost[each, np.minimum(most, slots + step)], -np.inf)
        losses = np.where(slots - step >= fewest, cost[each, np.maximum(0, slots - step)] - now, np.inf)
        better = gains[None, :] - losses[:, None]
        np.fill_diagonal(better, -np.inf)
        giver, taker = np.unravel_index(int(better.argmax()), better.shape)
        if not better[giver, taker] > 1e-9:
            return [int(each) for each in slots]
        slots[giver] -= step
        slots[taker] += step
