"""Copy what is predicted for the next batch while this one runs (expert replication, arXiv 2605.11537).

    behind layer l of batch i: its slots are free for layer l of batch i + 1: copy whoever is predicted there, in as
                               many copies as are allotted (moesim/replication.py)

The last layer's turn comes with the first layer of the next batch. Goes with the route of the same name and takes the
same parameters.
"""

from collections.abc import Sequence

from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody
from moesim.replication import BatchForecast


@register("prefetch", "next-batch")
class NextBatch(Prefetch):
    """Ask for the copies of the layer that has just run, for the batch to come."""

    reads_ahead = True
    of_next_step = True

    def __init__(self, copies: int = 8, recall: float = 0.9, seed: int = 0) -> None:
        self._forecast = BatchForecast(recall, seed, copies)
        self._step: Step | None = None
        self._following: Step | None = None

    def prepare(self, layers: int, experts: int) -> None:
        self._numbered = experts

    def allot(self, slots_per_layer: int) -> None:
        self._forecast.slots = slots_per_layer

    def _target(self, step: Step, layer: int) -> tuple[Step | None, int]:
        """The step and layer that are asked for during an event."""
        if layer == 0:
            return (step, step.layers - 1) if step.layers > 1 else (None, 0)
        if step is not self._step:
            self._step, self._following = step, step.following()
        return self._following, layer - 1

    def asks(self, step: Step, layer: int) -> bool:
        target, _ = self._target(step, layer) if step.tokens > 1 else (None, 0)
        return target is not None and self._forecast.foresees(target)

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        target, of = self._target(step, layer)
        assert target is not None, "asked only where something is foreseen"
        # Copies are the route's to use: beside a route that knows none, one slot each.
        numbers = (n for n in self._forecast.tokens_of_copies(target, of) if n < self._numbered)
        return [of * self._numbered + number for number in numbers]
