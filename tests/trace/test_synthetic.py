"""Synthetic traces reach what was asked for, as counted here by hand, and say that they are synthetic."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from moesim.errors import TraceError
from moesim.trace import Trace
from moesim.trace_synthetic import TOLERANCE, SyntheticSpec, synthesize

SHAPES = {
    "mixtral": (8, 8, 2), "phi": (8, 16, 2), "switch": (6, 128, 1), "one of three": (2, 3, 1), "wide": (4, 300, 8),
}


def spec(**changed):
    fields = {"layers": 4, "experts": 16, "top_k": 2, "overlap": 0.4, "busiest": 0.3, "decode_tokens": 400} | changed
    return SyntheticSpec(**fields)


def counted(trace):
    """Overlap with the token before and share of the busiest tenth, token by token in plain Python."""
    overlaps, shares = [], []
    for layer in range(trace.layers):
        rows = trace.experts[:, layer].tolist()
        same = sum(len(set(now) & set(before)) for before, now in pairwise(rows))
        overlaps.append(same / (trace.top_k * (len(rows) - 1)))
        counts = Counter(expert for row in rows for expert in row)
        busiest = sum(count for _, count in counts.most_common(max(1, round(trace.n_experts / 10))))
        shares.append(busiest / sum(counts.values()))
    return sum(overlaps) / len(overlaps), sum(shares) / len(shares)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("overlap_above_chance", "skew"), [(0.0, 2.0), (0.25, 3.0), (0.4, 2.5)])
def test_overlap_and_skew_are_reached(shape, overlap_above_chance, skew):
    layers, experts, top_k = SHAPES[shape]
    busiest_experts = max(1, round(experts / 10))
    busiest = min(skew * busiest_experts / experts, 0.9 * busiest_experts / top_k)
    if experts == 3:
        busiest = 0.5
    asked = spec(layers=layers, experts=experts, top_k=top_k, busiest=busiest, requests=3, seed=5, overlap=0.0)
    with pytest.raises(TraceError, match="cannot be reached") as refusal:  # it names what chance alone gives
        synthesize(asked)
    by_chance = float(str(refusal.value).split("gave is overlap ")[1].split()[0])
    overlap = by_chance + overlap_above_chance
    asked = spec(layers=layers, experts=experts, top_k=top_k, busiest=busiest, requests=3, seed=5, overlap=overlap)
    trace, reached = synthesize(asked)
    trace.validate()
    found_overlap, found_busiest = counted(trace)
    assert found_overlap == pytest.approx(overlap, abs=TOLERANCE)
    assert found_busiest == pytest.approx(busiest, abs=TOLERANCE)
    assert reached.overlap == pytest.approx(found_overlap)
    assert reached.busiest == pytest.approx(found_busiest)


def test_the_seed_decides():
    one, same, other = (synthesize(spec(seed=seed, recall=0.8))[0] for seed in (1, 1, 2))
    assert one.content_hash() == same.content_hash()
    assert not np.array_equal(one.experts, other.experts)


def test_requests_have_a_prefill_step_and_then_a_step_per_token():
    trace, _ = synthesize(spec(requests=2, prompt_tokens=3, decode_tokens=400))
    assert trace.tokens == 806
    assert trace.step[:6].tolist() == [0, 0, 0, 1, 2, 3]
    assert trace.phase[:5].tolist() == [0, 0, 0, 1, 1]
    assert trace.step[402:407].tolist() == [400, 401, 401, 401, 402]
    assert trace.request[[0, 402, 403, 805]].tolist() == [0, 0, 1, 1]
    assert trace.position[[0, 402, 403, 805]].tolist() == [0, 402, 0, 402]
    assert [each.prompt_tokens for each in trace.metadata.requests] == [3, 3]


@pytest.mark.parametrize("recall", [0.0, 0.55, 0.9, 1.0])
def test_the_predictor_has_the_recall_that_was_asked_for(recall):
    trace, _ = synthesize(spec(recall=recall))
    trace.validate()
    ranking = trace.predicted["synthetic"].ranking
    assert (ranking[:, 0] == 255).all()
    for layer in range(1, trace.layers):
        found = sum(
            len(set(truth) & set(ranked))
            for truth, ranked in zip(trace.experts[:, layer].tolist(), ranking[:, layer].tolist(), strict=True)
        )
        assert found / trace.experts[:, layer].size == pytest.approx(recall, abs=1 / trace.experts[:, layer].size)


def test_it_is_labelled_synthetic(tmp_path):
    trace, _ = synthesize(spec(model="mixtral-8x7b", moe_layers=(0, 2, 4, 6)))
    trace.save(tmp_path / "a.safetensors")
    found = Trace.load(tmp_path / "a.safetensors").metadata
    assert found.synthetic
    assert found.name == "synthetic-mixtral-8x7b"
    assert found.moe_layers == [0, 2, 4, 6]
    assert found.model == "none: the shape of mixtral-8x7b"
    assert "no model routed these tokens" in found.notes
    assert found.provenance["synthetic"]["asked"]["overlap"] == 0.4
    assert {each.kind for each in found.requests} == {"synthetic"}


def test_gate_weights_add_up_to_one():
    trace, _ = synthesize(spec(top_k=3, busiest=0.2))
    np.testing.assert_allclose(trace.weights.astype(float).sum(-1), 1, atol=2e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"busiest": 0.1}, "busiest = 0.1: with 16 experts, top-2, the 2 busiest take 0.125 to 1.000"),
        ({"busiest": 0.6, "experts": 8, "top_k": 2}, "the 1 busiest take 0.125 to 0.500"),
        ({"overlap": 0.05}, "overlap 0.05 with busiest share 0.3 cannot be reached: the nearest"),
        ({"overlap": 1.0}, "overlap 1 with busiest share 0.3 cannot be reached: the nearest"),
        ({"overlap": 1.2}, "overlap = 1.2: it is a share from 0 to 1"),
        ({"recall": -0.1}, "recall = -0.1: it is a share from 0 to 1"),
        ({"overlap": float("nan")}, "overlap = nan: it is a share from 0 to 1"),
        ({"experts": 3, "busiest": 0.4, "recall": 0.5}, "recall = 0.5: 3 experts leave fewer than 2 wrong ones"),
        ({"top_k": 17}, "top_k = 17: a layer has only 16 experts"),
        ({"layers": 0}, "layers = 0: it is at least 1"),
        ({"requests": -1}, "requests = -1: it is at least 1"),
        ({"prompt_tokens": -1}, "prompt_tokens = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"decode_tokens": 1}, "one token has no token before it"),
        ({"experts": 70_000}, "a trace holds at most 65535 experts"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changed, message):
    with pytest.raises(TraceError) as found:
        synthesize(spec(**changed))
    assert message in str(found.value)
    assert "\n" not in str(found.value)
