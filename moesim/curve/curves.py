"""All curves of a trace: what tells a working set that cannot fit from a bad policy, without a model or a machine.

    lru          one LRU pool that the layers share; `lru_even`, `lru_split`: a pool each, of even or of the best size
    exploded     the shared pool with every access an event of its own: what a plain cache simulator counts
    optimum      offline-optimal eviction (belady) in one pool; `optimum_even`, `optimum_split` as above

docs/curves.md says what the figures mean. Steps of prefill are demanded expert by expert, as a replay with
`prefill: demand` does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.curve.accesses import Accesses, Numbers, accesses
from moesim.curve.lru import StackDistances
from moesim.curve.optimum import optimum_distances
from moesim.curve.split import UNKNOWN, BestSplit, best_split
from moesim.curve.working_set import WorkingSets
from moesim.errors import TraceError
from moesim.trace import DECODE, Trace

WORKING_SET_STEPS = tuple(1 << power for power in range(0, 21, 2))


@dataclass(frozen=True, eq=False)
class Curves:
    """Misses by slots, from 0 to all experts; UNKNOWN where an event would not fit and would run in waves."""

    trace: str
    layers: int
    experts: int
    steps: int
    accesses: int
    compulsory: int
    """First uses, which miss at every size."""
    largest_event: int
    misses: dict[str, Numbers]
    """By the names above, [layers * experts + 1]; those of the optimum only if they were asked for."""
    splits: dict[str, BestSplit]
    """`lru_split` and `optimum_split`, which know the slots of each layer."""
    distances: Numbers
    """[layers, layers * experts + 1]: each layer's accesses by the slots that LRU needs to hit; 0 counts first uses."""
    working_sets: dict[int, list[float]]
    """By steps: the mean distinct experts of each layer in so many consecutive steps."""

    def hit_rate(self, name: str, slots: int) -> float | None:
        """The share of accesses that hit; None where the curve says nothing."""
        missed = int(self.misses[name][slots])
        return None if missed == UNKNOWN else 1 - missed / self.accesses


def curves_of(
    trace: Trace,
    *,
    decode_only: bool = False,
    optimum: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """All curves of a trace, which must be valid (`Trace.validate`).

    Without `optimum`, memory does not grow with the trace; with it, some 30 bytes an access are kept.
    `progress` is told how many steps are done of how many, counting each pass.

    Raises:
        TraceError: no step is left to look at, or no step accesses anything.
    """
    layers, experts, everything = trace.layers, trace.n_experts, trace.layers * trace.n_experts
    steps = _count_steps(trace, decode_only)
    passes = steps * (3 if optimum else 1)
    shared, plain = StackDistances(everything), StackDistances(everything)
    own = [StackDistances(experts) for _ in range(layers)]
    counts = {
        name: np.zeros((layers, (experts if name.endswith("_own") else everything) + 1), np.int64)
        for name in ("lru", "exploded", "lru_own", "optimum", "optimum_own")
    }
    working_sets = WorkingSets(layers, experts, steps, WORKING_SET_STEPS)
    largest = np.zeros(layers, np.int64)
    kept, done = [], 0
    for block in accesses(trace, decode_only=decode_only):
        largest = np.maximum(largest, np.diff(block.starts).reshape(-1, layers).max(0))
        layer_of = block.experts // experts
        _count(counts["lru"], layer_of, shared.of(block))
        _count(counts["exploded"], layer_of, plain.of(block.alone()))
        for layer, part in enumerate(events_by_layer(block, layers)):
            _count(counts["lru_own"], layer, own[layer].of(part))
        working_sets.add(block)
        if optimum:
            kept.append(block)
        done += block.events // layers
        progress(done, passes)
    for name, pools in (("optimum", 1), ("optimum_own", layers)) if optimum else ():
        for block, distances in zip(kept, optimum_distances(kept, layers, experts, pools), strict=True):
            _count(counts[name], block.experts // experts, distances)
            done += block.events // layers
            progress(done, passes)
    if not counts["lru"].any():
        raise TraceError(f"{trace.label}: no expert is chosen in any step")
    misses, splits = {"exploded": _misses(counts["exploded"].sum(0), 1)}, {}
    for name in ("lru", "optimum") if optimum else ("lru",):
        misses[name] = _misses(counts[name].sum(0), int(largest.max()))
        misses[name][0] = counts[name].sum()  # with a workspace alone nothing survives its event
        by_layer = np.array([_misses(each, int(low)) for each, low in zip(counts[f"{name}_own"], largest, strict=True)])
        misses[f"{name}_even"] = _even(by_layer, everything)
        splits[f"{name}_split"] = best_split(by_layer)
        misses[f"{name}_split"] = splits[f"{name}_split"].misses
    return Curves(
        trace=trace.metadata.name, layers=layers, experts=experts, steps=steps, accesses=int(counts["lru"].sum()),
        compulsory=int(counts["lru"][:, 0].sum()), largest_event=int(largest.max()), misses=misses, splits=splits,
        distances=counts["lru"], working_sets=working_sets.means(),
    )


def _count_steps(trace: Trace, decode_only: bool) -> int:
    begins = np.flatnonzero(np.diff(trace.step, prepend=trace.step[0] + 1))
    steps = int((trace.phase[begins] == DECODE).sum()) if decode_only else len(begins)
    if not steps:
        raise TraceError(f"{trace.label}: no step decodes: prefill alone is left, which was to be left out")
    return steps


def _count(counts: Numbers, layer: NDArray[np.int32] | int, distances: NDArray[np.integer]) -> None:
    """Add distances to the histograms of their layers."""
    width = counts.shape[1]
    counts += np.bincount(layer * width + distances, minlength=counts.size).reshape(counts.shape)


def events_by_layer(block: Accesses, layers: int) -> Iterable[Accesses]:
    """The events of each layer, with its experts numbered from 0."""
    sizes = np.diff(block.starts).reshape(-1, layers)
    layer = block.event_of % layers
    order = np.argsort(layer.astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(layer, minlength=layers))
    for number, part in enumerate(np.split(block.experts[order], ends[:-1])):
        yield Accesses(part, np.concatenate([[0], np.cumsum(sizes[:, number])]))


def _misses(counts: Numbers, fewest_slots: int) -> Numbers:
    """From accesses by the slots they need to misses by slots; UNKNOWN below `fewest_slots`."""
    misses: Numbers = counts.sum() - np.cumsum(counts) + counts[0]
    misses[:fewest_slots] = UNKNOWN
    return misses


def _even(by_layer: Numbers, everything: int) -> Numbers:
    """Misses of one pool a layer, each of the same size; what does not divide evenly is not used."""
    known = (by_layer != UNKNOWN).all(0)
    misses = np.where(known, by_layer.sum(0), UNKNOWN)
    spread: Numbers = misses[np.arange(everything + 1) // len(by_layer)]
    return spread
