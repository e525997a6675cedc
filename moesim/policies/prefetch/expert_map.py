"""FineMoE's expert maps (arXiv 2502.05370).

    of a forward pass: a map of L layers by E experts, the router's probabilities; each decoded token's map is stored
    at layer l: compare the rows up to l of the present map with those of every stored map, by cosine; the nearest one
                gives the probabilities of layer l + distance
    ask for the experts of that layer from the most probable on, until their probabilities sum to δ = clamp(1 - cosine)
    to 0..1, and for no fewer than top-k: the less alike, the more experts

The rows hold every probability where the trace has them, else the gate weights of the chosen experts. A full store
(`stored` maps) gives up its oldest; the paper removes the most redundant. Layers nearer than `distance` to the first
are not foreseen. The tokens of one step are averaged.
"""

from collections.abc import Sequence

import numpy as np

from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody


@register("prefetch", "expert-map")
class ExpertMap(Prefetch):
    """Ask for what the nearest earlier pass used, the more the less it resembles this one."""

    def __init__(self, distance: int = 3, stored: int = 1000) -> None:
        if distance < 1 or stored < 1:
            raise ConfigError(f"policy: expert-map[distance={distance},stored={stored}]: must be at least 1")
        self._distance = distance
        self._most = stored

    def prepare(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts
        self._maps = np.zeros((layers, 16, experts), dtype=np.float32)
        """By layer, so that a comparison reads one block; grows up to the most that are stored."""
        self._map_squares = np.zeros((layers, 16))
        self._present = np.zeros((layers, experts), dtype=np.float32)
        self._passes = 0

    def on_event(self, step: Step, layer: int) -> None:
        if step.phase != DECODE:
            return
        row = np.zeros(self._experts, dtype=np.float32)
        if step.has_scores:
            row += step.scores(layer).mean(axis=0)
        else:
            for token in step.gates(layer):
                for expert, weight in token:
                    row[expert] += weight / step.tokens
        kept = min(self._passes, self._most)
        if layer == 0:
            self._products = np.zeros(kept)
            self._squares = np.zeros(kept)
            self._square = 0.0
        known = self._maps[layer, :kept]
        self._products += known @ row
        self._squares += self._map_squares[layer, :kept]
        self._square += float(row @ row)
        self._present[layer] = row
        if layer + 1 == self._layers:
            self._keep()

    def _keep(self) -> None:
        """Store the map of the pass that ends."""
        place = self._passes % self._most
        if place == self._maps.shape[1]:
            self._maps = np.concatenate([self._maps, np.zeros_like(self._maps)], axis=1)
            self._map_squares = np.concatenate([self._map_squares, np.zeros_like(self._map_squares)], axis=1)
        self._maps[:, place] = self._present
        self._map_squares[:, place] = (self._present**2).sum(axis=1)
        self._passes += 1

    def asks(self, step: Step, layer: int) -> bool:
        return step.phase == DECODE and layer + self._distance < self._layers and self._passes > 0

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        lengths = np.sqrt(self._squares * self._square)
        likeness = np.divide(self._products, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        nearest = int(np.argmax(likeness))
        missing_mass = min(1.0, max(0.0, 1.0 - float(likeness[nearest])))
        ahead = layer + self._distance
        row = self._maps[ahead, nearest].astype(np.float64)
        order = np.argsort(-row, kind="stable")
        reached = np.cumsum(row[order])
        count = max(step.top_k, int(np.searchsorted(reached, missing_mass * reached[-1])) + 1)
        return [ahead * self._experts + int(expert) for expert in order[:count]]
