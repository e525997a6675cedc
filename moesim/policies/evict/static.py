"""Nothing is ever evicted: who is resident was settled before the first token.

    place = even:   the first experts of every layer, as many in each as the slots allow (KTransformers, Fiddler without
                    a profile of which experts are popular)
    place = layers: all experts of the last layers, as many whole layers as fit (llama.cpp `--n-cpu-moe N`: those of
                    the first N layers stay on the CPU)

What is copied on demand beside them uses further slots and leaves them after its event.
"""

from collections.abc import Iterable, Sequence

from moesim.errors import ConfigError
from moesim.events import UseList
from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "static")
class Static(Evict):
    """Key: (1, 0) of those placed at the start; (0, time of insertion) of everyone else."""

    bypass = True
    stays = True

    def __init__(self, place: str = "even") -> None:
        if place not in ("even", "layers"):
            raise ConfigError(f"policy: static[place={place}]: known: even, layers")
        self._place = place
        self._placed: set[int] = set()
        self._clock = 0

    def prepare(self, layers: int, experts: int, slots: int, future: UseList | None) -> None:
        self._experts, self._slots = experts, slots

    def placed(self, layers: Sequence[int]) -> Iterable[int]:
        experts = self._experts
        if self._place == "layers":
            whole = layers[len(layers) - min(len(layers), self._slots // experts) :]
            chosen = [layer * experts + e for layer in whole for e in range(experts)]
        else:
            # Expert by expert over all layers: the first layers hold one more where the slots do not divide evenly.
            chosen = [layer * experts + e for e in range(experts) for layer in layers][: self._slots]
        self._placed.update(chosen)
        return chosen

    def on_insert(self, expert: int) -> tuple[int, int]:
        if expert in self._placed:
            return 1, 0
        self._clock += 1
        return 0, self._clock

    on_hit = on_insert
