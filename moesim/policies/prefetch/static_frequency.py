"""Prefetch the experts used most so far, in all layers at once.

    always:           count how many tokens have used each expert of each layer
    at layer l = 0:   for every later layer, nearest first, ask for its `count` most used experts (by default top-k)

It knows nothing of the token. What a predictor that reads the token is worth is seen beside it. Ties go to the
expert that was used first.
"""

from collections import Counter
from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody


@register("prefetch", "static-frequency")
class StaticFrequency(Prefetch):
    """Ask for each layer's favourites when a token begins."""

    def __init__(self, count: int | None = None) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"policy: static-frequency[count={count}]: must be at least 1")
        self._count = count

    def prepare(self, layers: int, experts: int) -> None:
        self._experts = experts
        self._uses: list[Counter[int]] = [Counter() for _ in range(layers)]

    def on_event(self, step: Step, layer: int) -> None:
        if step.tokens == 1:
            self._uses[layer].update(step.accesses[layer])
        else:
            self._uses[layer].update(expert for token in step.gates(layer) for expert, _ in token)

    def asks(self, step: Step, layer: int) -> bool:
        return step.phase == DECODE and layer == 0

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        count = self._count or step.top_k
        return [
            ahead * self._experts + expert
            for ahead in range(1, step.layers)
            for expert, _ in self._uses[ahead].most_common(count)
        ]
