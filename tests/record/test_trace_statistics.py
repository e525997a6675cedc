"""The statistics against counts made one access at a time, and against the published table of real traces."""

import json
from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim import trace_statistics as statistics

REAL_TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"


@st.composite
def routed(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Experts [T, L, K] without repetition in a row, skewed and correlated, and the number of experts."""
    tokens, layers, top_k = draw(st.integers(2, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n_experts = draw(st.integers(top_k, 14))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    chance = random.dirichlet(np.full(n_experts, 2.0), size=layers)
    rows = [[random.choice(n_experts, top_k, replace=False, p=chance[layer]) for layer in range(layers)]
            for _ in range(tokens)]
    return np.array(rows, dtype=np.uint8), n_experts


@given(routed())
def test_overlap_counts_shared_experts(trace: tuple[np.ndarray, int]) -> None:
    experts, _ = trace
    for layer in range(experts.shape[1]):
        shared = [len(set(now[layer]) & set(before[layer])) for before, now in pairwise(experts)]
        expected = sum(shared) / (len(shared) * experts.shape[2])
        assert statistics.overlap_with_previous_token(experts)[layer] == pytest.approx(expected)


def test_overlap_does_not_depend_on_how_the_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = np.random.default_rng(0).integers(0, 200, (50, 2, 4)).astype(np.uint8)
    whole = statistics.overlap_with_previous_token(experts)
    monkeypatch.setattr(statistics, "_CHUNK_TOKENS", 7)
    np.testing.assert_array_equal(statistics.overlap_with_previous_token(experts), whole)


def test_shuffling_keeps_skew_and_loses_order() -> None:
    # Two halves that share no expert: neighbours agree always, random pairs half of the time.
    experts = np.repeat(np.array([[[0, 1]], [[2, 3]]], dtype=np.uint8), 500, axis=0)
    assert statistics.overlap_with_previous_token(experts)[0] > 0.99
    assert statistics.shuffled_overlap(experts)[0] == pytest.approx(0.5, abs=0.05)


@given(routed(), st.data())
def test_lru_equals_a_queue(trace: tuple[np.ndarray, int], data: st.DataObject) -> None:
    experts, n_experts = trace
    slots = data.draw(st.integers(1, n_experts))
    rates = statistics.lru_hit_rate(experts, n_experts, slots)
    for layer in range(experts.shape[1]):
        queue: OrderedDict[int, None] = OrderedDict()
        hits = accesses = 0
        for row in experts[:, layer]:
            for expert in reversed(row.tolist()):
                accesses += 1
                hits += expert in queue
                queue[expert] = None
                queue.move_to_end(expert)
                if len(queue) > slots:
                    queue.popitem(last=False)
        assert rates[layer] == pytest.approx(hits / accesses)


def test_lru_refuses_a_cache_that_is_none() -> None:
    with pytest.raises(ValueError, match="0 slots"):
        statistics.lru_hit_rate(np.zeros((2, 1, 1), dtype=np.uint8), 4, 0)


@given(routed())
def test_busiest_share_counts_selections(trace: tuple[np.ndarray, int]) -> None:
    experts, n_experts = trace
    for layer in range(experts.shape[1]):
        counts = Counter(experts[:, layer].ravel().tolist())
        busiest = sum(count for _, count in counts.most_common(max(1, round(0.3 * n_experts))))
        found = statistics.busiest_share(experts, n_experts, 0.3)[layer]
        assert found == pytest.approx(busiest / counts.total())


def test_recall_counts_foreseen_experts_and_leaves_absent_rows_out() -> None:
    experts = np.array([[[1, 2], [1, 2]], [[3, 4], [3, 4]], [[5, 6], [5, 6]]], dtype=np.uint8)
    ranking = np.full((3, 2, 3), 255, dtype=np.uint8)
    ranking[0, 1] = [2, 9, 1]  # one of two within the first two, both within three
    ranking[1, 1] = [4, 3, 0]
    recall = statistics.prediction_recall(experts, ranking)
    assert np.isnan(recall[0])
    assert recall[1] == pytest.approx(0.75)
    assert statistics.prediction_recall(experts, ranking, first=3)[1] == pytest.approx(1.0)


@pytest.mark.skipif(not REAL_TRACES.exists(), reason="the recordings of real models are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "n_experts", "overlap", "shuffled", "lru", "busiest"),
    [
        ("gptoss-all", 128, 0.504, 0.185, 0.87, 0.59),
        ("olmoe-all", 64, 0.415, 0.191, 0.55, 0.25),
        ("dsv2lite-all", 64, 0.242, 0.106, 0.41, 0.17),
    ],
)
def test_the_table_of_real_traces_comes_out(
    name: str, n_experts: int, overlap: float, shuffled: float, lru: float, busiest: float
) -> None:
    lines = (REAL_TRACES / "nvmoe" / f"{name}.tokens.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    layers = sorted({layer for layer, _ in rows[0]})
    experts = np.array([[[e for at, e in row if at == layer] for layer in layers] for row in rows], dtype=np.uint8)
    found = statistics.routing(experts, n_experts)
    assert found.overlap == pytest.approx(overlap, abs=0.0006)
    assert found.shuffled == pytest.approx(shuffled, abs=0.005)  # another permutation
    assert found.lru_quarter == pytest.approx(lru, abs=0.006)
    assert found.busiest_tenth == pytest.approx(busiest, abs=0.008)
