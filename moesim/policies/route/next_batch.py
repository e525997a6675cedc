"""Execute what was predicted for a batch while the one before it ran, over as many copies of each expert as have slots.

Expert replication (arXiv 2605.11537). The true router is skipped, so this is lossy. The first batch, prefill and
single sequences, of whose next token nothing can be foreseen, are routed truly. moesim/replication.py allots the slots.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Present, Route, nobody
from moesim.replication import BatchForecast

MOST_COPIES = 64


@register("route", "next-batch")
class NextBatch(Route):
    """Accesses are the predicted experts' copies; `copies` is the most of one expert."""

    lossless = False
    reads_ahead = True

    def __init__(self, copies: int = 8, recall: float = 0.9, seed: int = 0) -> None:
        if not 1 <= copies <= MOST_COPIES:
            raise ConfigError(f"policy: next-batch[copies={copies}]: must be 1 to {MOST_COPIES}")
        self.copies = copies
        self._forecast = BatchForecast(recall, seed, copies)

    def allot(self, slots_per_layer: int) -> None:
        self._forecast.slots = slots_per_layer

    def reads_router(self, step: Step, layer: int) -> bool:
        return not self._forecast.foresees(step)

    def accesses(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        self.choices = self.loads = None
        if not self._forecast.foresees(step):
            return step.accesses[layer]
        self.choices = self._forecast.choices(step, layer)
        self.loads = self._forecast.tokens_of_copies(step, layer)
        return list(self.loads)
