"""HOBBIT's four terms (arXiv 2411.01433).

    T: token of the sequence; of an expert: R token of its last use, F uses, H high-precision uses (see `lhu`), all
    counted within the sequence, whether the expert stayed on the GPU or not, and set to 0 when the next one begins
    d: how far its layer is ahead of the present one, (l_e - l_now + L) mod L
    victim: the smallest lru·R/T + lfu·F/T + lhu·H/T + fld·(1 - d/L); ties go to the least recently used

Experts that a prefetch names are pinned until their layer has run, which is the paper's mask. The four weights are
open; here each is 0.25 unless it is given.

T and d change with every token and layer, for all experts at once. Times T·L the value is

    L·(lru·R + lfu·F + lhu·H)  +  fld·T·(L - d)

The first part changes only when the expert is used, the second is the same for all experts of a layer. So the first
part orders a layer's experts whatever T and the present layer are (a heap per layer keeps it), and the victim is found
by adding the second part to the first candidate of each layer: L additions for an eviction, no scan of the slots.
With weights that are sums of powers of two all of it is exact in binary.
"""

from collections.abc import Iterable, Sequence
from math import inf

from moesim.events import Step
from moesim.policies.precision import high_precision
from moesim.policies.registry import register
from moesim.policies.roles import Evict

HobbitKey = tuple[float, int]


@register("evict", "hobbit")
class Hobbit(Evict):
    """Key: (lru·R + lfu·F + lhu·H, time of last use); `lightest` adds the layer's part."""

    weighs_layers = True

    def __init__(
        self, lru: float = 0.25, lfu: float = 0.25, lhu: float = 0.25, fld: float = 0.25, high: float = 0.6
    ) -> None:
        self._weights = lru, lfu, lhu
        self._fld = fld
        self._limit = high
        self._clock = 0
        self._token = 0
        self._requests: list[int] = []
        self._begins = False
        self._high: set[int] = set()
        self._stamp: dict[int, int] = {}
        """Of every resident: the time of its last use, or of its insertion."""
        self._counts: dict[int, tuple[int, int, int]] = {}
        """Of every expert used in this sequence: R, F, H."""

    def prepare(self, layers: int, experts: int, slots: int, future: object) -> None:
        self._layers, self._experts = layers, experts

    def on_step(self, step: Step) -> None:
        requests = step.requests
        self._begins = not set(requests) <= set(self._requests)
        self._requests = requests
        if self._begins:
            self._token = 0
            self._counts.clear()
        self._token += step.tokens

    def on_pass_start(self) -> Iterable[tuple[int, HobbitKey]]:
        return [(expert, self._key(expert)) for expert in self._stamp] if self._begins else ()

    def on_event(self, step: Step, layer: int) -> None:
        base = layer * self._experts
        self._high = {base + e for e in high_precision(step, layer, self._limit)}

    def _key(self, expert: int) -> HobbitKey:
        last, uses, high = self._counts.get(expert, (0, 0, 0))
        lru, lfu, lhu = self._weights
        return lru * last + lfu * uses + lhu * high, self._stamp[expert]

    def on_hit(self, expert: int) -> HobbitKey:
        _, uses, high = self._counts.get(expert, (0, 0, 0))
        self._counts[expert] = self._token, uses + 1, high + (expert in self._high)
        return self.on_prefetch(expert)

    on_insert = on_hit

    def on_prefetch(self, expert: int) -> HobbitKey:
        self._clock += 1
        self._stamp[expert] = self._clock
        return self._key(expert)

    def lightest(self, firsts: Sequence[HobbitKey | None], present: int) -> int:
        layers, near = self._layers, self._fld * self._token
        least, found = (inf, 0), -1
        for layer, key in enumerate(firsts):
            if key is not None:
                weight = layers * key[0] + near * (layers - (layer - present) % layers)
                if weight <= least[0] and (weight, key[1]) < least:
                    least, found = (weight, key[1]), layer
        return found

    def on_evict(self, expert: int) -> None:
        del self._stamp[expert]
