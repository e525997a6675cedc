"""MoE-Infinity's activation matrices (arXiv 2401.14361).

    of a sequence: a matrix of L layers by E experts, how many tokens were routed to each
    when a sequence ends its matrix is stored; a full store gives up the stored matrix that is most like the new one
    at layer l: find the stored matrix with the largest cosine to that of the present sequence; its row of a layer,
                scaled to sum to 1, is the probability of the layer's experts; for later layers i, priority =
                probability·(1 - (i - l)/L); ask for the experts in the order of their priority

The paper prefetches as long as the link is free. A decision has no clock here, so a number of experts is asked for at
each layer: `count`, by default the model's top-k. With an empty store nothing is asked for. Several sequences in one
step count as one. The store holds `stored` matrices. Both numbers are choices of ours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody


@register("prefetch", "activation-matrix")
class ActivationMatrix(Prefetch):
    """Ask for what a similar sequence used, near layers before far ones."""

    def __init__(self, count: int | None = None, stored: int = 120) -> None:
        if (count is not None and count < 1) or stored < 1:
            raise ConfigError(f"policy: activation-matrix[count={count},stored={stored}]: must be at least 1")
        self._count = count
        self._most = stored

    def prepare(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts
        self._requests: list[int] = []
        self._matrix = np.zeros((layers, experts))
        self._stored = np.zeros((0, layers, experts))
        self._store_norms = np.zeros(0)
        self._products = np.zeros(0)

    def on_event(self, step: Step, layer: int) -> None:
        if layer == 0:
            requests = step.requests
            if not set(requests) <= set(self._requests):
                self._keep()
            self._requests = requests
        uses = np.bincount(
            [expert for token in step.gates(layer) for expert, _ in token], minlength=self._experts
        ).astype(np.float64)
        self._matrix[layer] += uses
        self._products += self._stored[:, layer] @ uses

    def _keep(self) -> None:
        """Store the matrix of the sequence that has ended, and begin an empty one."""
        if self._matrix.any():
            if len(self._stored) == self._most:
                self._stored[int(np.argmax(self._likeness()))] = self._matrix
            else:
                self._stored = np.concatenate([self._stored, self._matrix[None]])
            self._store_norms = np.sqrt((self._stored**2).sum(axis=(1, 2)))
        self._matrix = np.zeros_like(self._matrix)
        self._products = np.zeros(len(self._stored))

    def _likeness(self) -> NDArray[np.float64]:
        """The cosine of every stored matrix to the present one, up to the length of the present one."""
        return self._products / self._store_norms

    def asks(self, step: Step, layer: int) -> bool:
        return step.phase == DECODE and layer + 1 < self._layers and len(self._stored) > 0

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        nearest = self._stored[int(np.argmax(self._likeness()))][layer + 1 :]
        totals = nearest.sum(axis=1, keepdims=True)
        probability = np.divide(nearest, totals, out=np.zeros_like(nearest), where=totals > 0)
        distance = np.arange(1, len(nearest) + 1)[:, None]
        priority = (probability * (1 - distance / self._layers)).ravel()
        count = min(self._count or step.top_k, int((priority > 0).sum()))
        if count == 0:
            return ()
        # Only those that can be among them are sorted; equals stay in the order of layers and experts.
        enough = np.flatnonzero(priority >= np.partition(priority, -count)[-count])
        first = (layer + 1) * self._experts
        return [first + int(place) for place in enough[np.argsort(-priority[enough], kind="stable")[:count]]]
