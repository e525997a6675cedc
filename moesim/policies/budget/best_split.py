"""A pool for each layer, sized by dynamic programming over the layers' miss curves (AdapMoE, arXiv 2408.10284).

    m_l(c): misses of layer l with c slots of its own, from one pass over a profile
    choose the c_l that add up to all slots and make the sum of m_l(c_l) least

The curves are LRU's and exact (docs/curves.md), so on its own profile no other split of an LRU cache misses less. The
profile is the first decoded tokens of the trace itself, where the paper takes a calibration set; `profile=0` takes the
whole trace: the best split in hindsight. The paper also weighs each layer by how well it is prefetched and how often
one expert is enough; here a miss counts the same everywhere.
"""

import numpy as np

from moesim.capacity import Capacity, Memory
from moesim.curve import curves_of
from moesim.curve.split import UNKNOWN
from moesim.errors import ConfigError
from moesim.policies.registry import register
from moesim.policies.roles import Budget
from moesim.trace import DECODE, Trace


@register("budget", "best-split")
class BestSplit(Budget):
    """`profile`: how many decoded tokens the curves are taken from; 0 for all."""

    def __init__(self, profile: int = 256) -> None:
        if profile < 0:
            raise ConfigError(f"policy: best-split[profile={profile}]: must be 0 (the whole trace) or more")
        self._profile = profile

    def divide(self, memory: Memory) -> Capacity:
        if memory.per_layer:
            raise ConfigError("policy: best-split sizes the layers itself: leave per_layer out")
        curves = curves_of(profile_of(memory.trace, self._profile), decode_only=True, optimum=False)
        split = curves.splits["lru_split"]
        if split.misses[memory.slots] == UNKNOWN:
            raise ConfigError(
                f"policy: best-split of {memory.slots} slots: {memory.layers} layers need {memory.top_k} each at least"
            )
        return Capacity.of_each_layer(split.slots(memory.slots))


def profile_of(trace: Trace, tokens: int) -> Trace:
    """The rows up to the one where so many tokens have been decoded; all of them for 0."""
    decoded = np.flatnonzero(trace.phase == DECODE)
    return trace if not 0 < tokens < len(decoded) else trace.slice(0, int(decoded[tokens - 1]) + 1)
