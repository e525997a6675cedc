"""How many of each event's experts miss, by the slots of the layer: what a mean over events would hide.

The curves of `moesim/curve/curves.py` add all events up. What a copy costs can depend on how many come at once, so
here the events stay apart; the stack distances are the same (`moesim/curve/lru.py`).
"""

import numpy as np

from moesim.curve.accesses import Numbers, accesses
from moesim.curve.curves import events_by_layer
from moesim.curve.lru import COLD, StackDistances
from moesim.trace import Trace


def event_misses(trace: Trace) -> tuple[Numbers, Numbers]:
    """Of the decode steps: [layers, experts + 1, steps] misses by slots, and [layers, steps] accesses.

    A pool of LRU for each layer. Sizes below a layer's largest event, where it runs in waves, mean nothing.
    """
    layers, experts = trace.layers, trace.n_experts
    own = [StackDistances(experts) for _ in range(layers)]
    blocks = []
    for block in accesses(trace, decode_only=True):
        steps = block.events // layers
        misses, asked = np.zeros((layers, experts + 1, steps), np.int64), np.zeros((layers, steps), np.int64)
        for layer, part in enumerate(events_by_layer(block, layers)):
            distances = own[layer].of(part)
            asked[layer] = np.diff(part.starts)
            needed = np.where(distances == COLD, experts + 1, distances)  # one slot more than there are never hits
            hits = np.bincount(part.event_of * (experts + 2) + needed, minlength=steps * (experts + 2))
            misses[layer] = asked[layer] - hits.reshape(steps, -1).cumsum(1).T[:-1]
        blocks.append((misses, asked))
    return np.concatenate([each for each, _ in blocks], 2), np.concatenate([each for _, each in blocks], 1)
