"""What all rules share that choose a token's experts anew from its router scores and from what is resident.

A rule gives one function: a token's experts in the router's order, their scores, and which are resident, to its choice.
Prefill routes truly under every policy. Several tokens are routed one by one on the state at the start of the event.
The gate weights of the experts are the router's own, so what a choice costs is the weight of those left out.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from moesim.errors import ConfigError
from moesim.events import PREFILL, Scores, Step
from moesim.policies.roles import Present, Route, nobody
from moesim.trace import Trace


class ReRoute(Route):
    """Accesses are what `choose` says, token by token, in the router's order."""

    lossless = False
    looks_at_cache = True

    def check(self, trace: Trace) -> None:
        if trace.scores is None:
            raise ConfigError(
                f"{trace.label}: no array scores: a policy that routes anew needs the probability of every expert"
            )

    def prepare(self, layers: int, experts: int) -> None:
        self._experts = experts

    def reads_router(self, step: Step, layer: int) -> bool:
        return True

    def accesses(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        if step.phase == PREFILL:
            self.choices = None
            return step.accesses[layer]
        base = layer * self._experts
        resident = [present(base + expert) for expert in range(self._experts)]
        self.choices = []
        for gates, scores in zip(step.gates(layer), step.scores(layer), strict=True):
            order = _router_order([expert for expert, _ in gates], scores)
            # A token that was dropped at this layer has no experts, and gets none.
            self.choices.append(self.choose(layer, order, scores, resident, len(gates)) if gates else [])
        if len(self.choices) == 1:
            return self.choices[0]
        return list(dict.fromkeys(expert for choice in self.choices for expert in choice))

    @abstractmethod
    def choose(
        self, layer: int, order: list[int], scores: Scores, resident: list[bool], count: int
    ) -> list[int]:
        """`count` experts of `order`, which is the router's, heaviest first. `scores` and `resident` are by expert."""


def _router_order(chosen: list[int], scores: Scores) -> list[int]:
    """All experts of a layer, heaviest first; the router's own choice leads, though half precision may show a tie."""
    own = set(chosen)
    rest = np.argsort(-scores, kind="stable").tolist()
    return chosen + [expert for expert in rest if expert not in own]
