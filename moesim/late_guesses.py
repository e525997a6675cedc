"""Guesses that their router overtook: what becomes of prefetches still in the queue when their layer has its turn.

Once a layer's router has spoken, a copy that has not begun is either not needed or needed at once. ProMoE
(arXiv 2410.22134) drops all of these: what is needed comes back as demand, before every other guess. A guess that has
begun and is needed is brought to its end first. So what is resident depends on how far the copies have come: such a
run decides anew under each clock.
"""

from collections.abc import Generator
from typing import Any

from moesim.decide import Decider
from moesim.decision import Decision
from moesim.devices.base import DeviceWithCopyQueues
from moesim.events import Step


class LateGuesses:
    """Asks the device how far it has come, and tells the decider."""

    def __init__(self, decider: Decider, device: DeviceWithCopyQueues[Any]) -> None:
        self._decider = decider
        self._device = device
        self._begun: set[int] = set()
        self.dropped = 0
        """Since the loop last took it to 0, at the end of a step."""

    def concerns(self, step: Step, layer: int) -> bool:
        """Whether the router of this layer is asked at all."""
        return self._decider.needs_true_ids(step, layer)

    def drop(self, layer: int) -> Generator[Any, None, list[int]]:
        """Drop the layer's guesses that have not begun; returns their slots. The host must know the router's ids."""
        guesses = self._decider.foreseen(layer)
        if not guesses:
            return []
        unstarted = yield from self._device.drop_unstarted(guesses)
        self.dropped += len(unstarted)
        self._begun = guesses.difference(unstarted)
        return self._decider.take_back(layer, unstarted)

    def hasten(self, decision: Decision) -> None:
        """Whoever is needed and under way comes before whoever is needed and has not begun."""
        needed = self._begun.intersection(expert for wave in decision.waves for expert in wave.execute)
        self._begun = set()
        if needed:
            self._device.hasten(needed)
