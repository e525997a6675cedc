"""The package's decisions beside those of tests/oracles/scan.py."""

from dataclasses import replace

import numpy as np

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.events import steps
from moesim.policies.composition import parse
from tests.oracles import scan


def events_of(trace):
    """The oracle's events, read from the arrays."""
    assert len(set(trace.step.tolist())) == trace.tokens, "one token a step"
    for row in range(trace.tokens):
        for layer in range(trace.layers):
            yield scan.Event(
                row, layer, int(trace.request[row]), tuple(trace.experts[row, layer].tolist()),
                tuple(trace.weights[row, layer].tolist()),
                () if trace.scores is None else tuple(trace.scores[row, layer].tolist()),
            )


def decisions(policy, trace, slots):
    decider = Decider(parse(policy), trace.layers, trace.n_experts, Capacity(slots), largest_event=trace.top_k)
    return list(run_without_clock(decider, steps(trace)))


def same(made, outcomes, experts):
    """Hits, copies, victims, stand-ins and drops of every event."""
    assert len(made) == len(outcomes)
    for decision, outcome in zip(made, outcomes, strict=True):
        base = decision.layer * experts
        demand = [copy for wave in decision.waves for copy in wave.demand]
        assert decision.hits == len(outcome.hits)
        assert {copy.expert - base for copy in demand} == outcome.fetched
        assert {expert - base for expert in decision.stood_in} == outcome.stood_in
        assert [divmod(copy.expert, experts) for copy in decision.prefetch] == outcome.prefetched
        gone = [divmod(copy.displaced, experts) for copy in demand + decision.prefetch if copy.displaced is not None]
        assert sorted(gone) == sorted(outcome.victims)
        assert decision.prefetch_dropped == outcome.dropped


def with_scores(trace, seed=0):
    """The same choices, with every router probability and the weights that follow from it."""
    random = np.random.default_rng(seed)
    drawn = -np.sort(-np.exp(random.normal(size=(trace.tokens, trace.layers, trace.n_experts))), axis=-1)
    drawn = (drawn / drawn.sum(axis=-1, keepdims=True)).astype(np.float16)
    scores = np.zeros_like(drawn)
    for place in np.ndindex(trace.tokens, trace.layers):
        own = [expert for expert in trace.experts[place].tolist() if expert != trace.absent]
        rest = random.permutation([expert for expert in range(trace.n_experts) if expert not in own]).tolist()
        scores[place][own + rest] = drawn[place]
    return replace(trace, scores=scores, weights=drawn[:, :, : trace.top_k])
