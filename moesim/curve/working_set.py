"""Working sets: how many distinct experts of each layer a stretch of consecutive steps uses, on average.

The mean over all stretches of a length is exact, by P. J. Denning's and S. C. Schwartz's argument ("Properties of the
working-set model", CACM 15(3), 1972): an access is the first of its expert in a stretch if the stretch holds it and not
the access before, so the interval between the two says in how many stretches it counts.
"""

from collections.abc import Sequence

import numpy as np

from moesim.curve.accesses import Accesses


class WorkingSets:
    """Mean working sets of each layer for stretches of `lengths` steps, in a trace of `steps` steps."""

    def __init__(self, layers: int, experts: int, steps: int, lengths: Sequence[int]) -> None:
        self._layers, self._experts, self._steps = layers, experts, steps
        self._lengths = [length for length in lengths if length <= steps]
        self._counted = np.zeros((len(self._lengths), layers), np.int64)
        self._last_step = np.full(layers * experts, -1, np.int64)
        self._step = 0

    def add(self, block: Accesses) -> None:
        """The next block."""
        order = np.argsort(block.experts, kind="stable")
        expert = block.experts[order]
        step = (block.event_of // self._layers + self._step)[order]
        again = np.append(False, expert[1:] == expert[:-1])[: len(order)]
        before = np.where(again, np.roll(step, 1), self._last_step[expert])
        latest = np.append(~again[1:], True)[: len(order)]
        self._last_step[expert[latest]] = step[latest]
        self._step += block.events // self._layers
        layer = expert // self._experts
        for row, length in enumerate(self._lengths):
            # Stretches begin at a step from 0 to steps - length, at most `length` - 1 before the access.
            first = np.maximum(step - length + 1, before + 1)
            stretches = np.minimum(step, self._steps - length) - first + 1
            self._counted[row] += np.bincount(
                layer, np.maximum(stretches, 0), minlength=self._layers
            ).astype(np.int64)

    def means(self) -> dict[int, list[float]]:
        """For each length in steps that the trace holds, the mean distinct experts of each layer."""
        return {
            length: (counted / (self._steps - length + 1)).tolist()
            for length, counted in zip(self._lengths, self._counted, strict=True)
        }
