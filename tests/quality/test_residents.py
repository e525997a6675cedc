"""Residency along a text: the pool against moesim's own Decider, and against lists kept by hand."""

import random

import numpy as np
import pytest
import torch

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.events import steps
from moesim.policies.composition import parse
from moesim.quality.modes.cache_prior import CachePrior
from moesim.quality.modes.cached import heaviest_first
from moesim.quality.modes.resident_execute import ResidentExecute
from moesim.quality.resident_pool import ResidentPool, slots_of
from moesim.trace import Availability, Prediction, Trace, TraceMetadata
from tests.quality.settings import PROMPT, default_vectors, foresights, logits_of, model_and_layers, tokens
from tests.record.tiny_models import EXPERTS, TOP_K

PREDICTOR = "residual+default-vectors"


def trace_of(experts, predicted):
    """One request of decode tokens alone, [tokens, layers, top_k] each."""
    count, layers, top_k = experts.shape
    weights = np.broadcast_to(np.linspace(0.5, 0.1, top_k), experts.shape).astype(np.float16)
    metadata = TraceMetadata(
        name="quality", model="test", layers=layers, experts=EXPERTS, top_k=top_k, moe_layers=list(range(layers)),
        predictors={PREDICTOR: Availability(layer_offset=1, point="-", description="-")}, dataset="-", tokenizer="-",
        decoding="teacher-forced", recorder="-", recorder_version="-", licence="-", source="-",
    )
    numbers = np.arange(count, dtype=np.uint32)
    return Trace(
        experts=experts.astype(np.uint8), weights=weights, step=numbers, request=np.zeros(count, np.uint32),
        position=numbers, phase=np.ones(count, np.uint8), scores=None,
        predicted={PREDICTOR: Prediction(predicted.astype(np.uint8), None)}, metadata=metadata, path=None,
    )


def decided(trace, policy, slots):
    """By event in order: the experts that moesim's own Decider executes."""
    decider = Decider(parse(policy), trace.layers, EXPERTS, Capacity(slots), largest_event=TOP_K)
    return [
        [expert - decision.layer * EXPERTS for wave in decision.waves for expert in wave.execute]
        for decision in run_without_clock(decider, steps(trace))
    ]


@pytest.mark.parametrize("name", ["olmoe", "qwen3"])
@pytest.mark.parametrize("fraction", [0.07, 0.2, 0.5])
def test_the_trajectory_is_that_of_the_replayed_policy(name, fraction, monkeypatch):
    """What a running model asked of its pool, put into a trace and replayed: the same experts are executed."""
    _, layers = model_and_layers(name)
    true, wanted, executed = [], [], []
    ask, bring = ResidentPool.event, ResidentPool.prefetch

    def event(self, layer, chosen, *, fetch):
        true.append(list(chosen))
        executed.append(ask(self, layer, chosen, fetch=fetch))
        return executed[-1]

    def prefetch(self, layer, named):
        wanted.append(list(named))
        bring(self, layer, named)

    monkeypatch.setattr(ResidentPool, "event", event)
    monkeypatch.setattr(ResidentPool, "prefetch", prefetch)
    mode = ResidentExecute(layers, foresights(name)[-1], fraction, default_vectors(name))
    logits_of(name, mode, tokens(1, 64))
    experts = np.array(true).reshape(-1, len(layers), TOP_K)
    predicted = np.full_like(experts, 255)
    predicted[:, 1:] = np.array(wanted).reshape(-1, len(layers) - 1, TOP_K)
    slots = slots_of(fraction, len(layers), EXPERTS)
    assert executed == decided(trace_of(experts, predicted), "resident-execute", slots)
    assert any(len(each) < TOP_K for each in executed)
    assert any(executed[at] for at in range(len(executed)) if at % len(layers))


def test_without_prefetch_it_is_lru_with_demand_copies():
    """Random events, replayed by the policy lru, and by a list that is searched from its old end."""
    draw = random.Random(4)
    experts = np.array([[draw.sample(range(EXPERTS), TOP_K) for _ in range(5)] for _ in range(200)])
    pool, order, hits, expected = ResidentPool(17, 5, EXPERTS), [], [], []
    for token in experts.tolist():
        for layer, chosen in enumerate(token):
            hits.append([e for e in chosen if e in pool.residents(layer)])
            assert pool.event(layer, chosen, fetch=True) == chosen
            pool.finish(layer)
            named = [(layer, e) for e in chosen]
            expected.append([e for _, e in named if (layer, e) in order])
            for each in named:
                if each not in order and len(order) == 17:
                    order.remove(next(old for old in order if old not in named))
                if each not in order:
                    order.append(each)
            for each in reversed(named):
                order.remove(each)
                order.append(each)
    assert hits == expected
    trace = trace_of(experts, np.full_like(experts, 255))
    decider = Decider(parse("lru"), 5, EXPERTS, Capacity(17), largest_event=TOP_K)
    counts = [decision.hits for decision in run_without_clock(decider, steps(trace))]
    assert counts == [len(each) for each in hits]
    assert 0 < sum(counts) < experts.size


def test_a_prefetch_without_a_victim_is_dropped():
    """Three slots: two pinned by the running layer, one by the first prefetch; the second finds no place."""
    pool = ResidentPool(3, 2, EXPERTS)
    pool.event(0, [4, 5], fetch=True)
    pool.prefetch(1, [7, 8])
    assert (pool.residents(0), pool.residents(1)) == ([4, 5], [7])
    pool.finish(0)
    assert pool.event(1, [8, 7], fetch=False) == [7]
    pool.finish(1)
    pool.event(0, [1, 2], fetch=True)
    assert (pool.residents(0), pool.residents(1)) == ([1, 2], [7])


def test_cache_prior_recomputed_token_by_token():
    """Selection, weights and residency from the routers' logits, with an LRU list and a running mean by hand."""
    name, strength, keep, fraction = "olmoe", 0.6, 1, 0.3
    _, layers = model_and_layers(name)
    given = tokens(1, 60)
    seen = []
    mode = CachePrior(layers, fraction, strength, keep)
    answer = mode.execute

    def execute(event):
        seen.append((event.index, event.logits[0].clone(), event.weights, answer(event)))
        return seen[-1][-1]

    mode.execute = execute
    logits_of(name, mode, given)
    slots, order, ranges = slots_of(fraction, len(layers), EXPERTS), [], [[] for _ in layers]
    moved = 0
    for layer, logits, _, execution in seen:
        z = logits.tolist()
        ranges[layer].append(max(z) - min(z))
        shift = strength * sum(ranges[layer]) / len(ranges[layer])
        best = sorted(range(EXPERTS), key=lambda e: -z[e])[:keep]
        favoured = [z[e] + shift * ((layer, e) in order or e in best) for e in range(EXPERTS)]
        selected = sorted(range(EXPERTS), key=lambda e: -favoured[e])[:TOP_K]
        got = dict(zip(execution.experts[0].tolist(), execution.weights[0].tolist(), strict=True))
        assert sorted(got) == sorted(selected)
        share = logits.softmax(-1).tolist()
        assert all(got[e] == pytest.approx(share[e], rel=1e-4) for e in selected)
        moved += sorted(selected) != sorted(sorted(range(EXPERTS), key=lambda e: -z[e])[:TOP_K])
        named = [(layer, e) for e in sorted(selected, key=lambda e: -share[e])]
        for each in named:
            if each not in order and len(order) == slots:
                order.remove(next(old for old in order if old not in named))
            if each not in order:
                order.append(each)
        for each in reversed(named):
            order.remove(each)
            order.append(each)
    assert len(seen) == (60 - 1 - PROMPT) * len(layers)
    assert moved > 10


def test_heaviest_first_leaves_dropped_tokens_out():
    assert heaviest_first(torch.tensor([[3, 1, -1], [0, 2, 5]]), torch.tensor([[0.2, 0.5, 0.0], [0.3, 0.3, 0.4]])) == [
        [1, 3], [5, 0, 2],
    ]
