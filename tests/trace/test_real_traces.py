"""Recordings of real models: they import, validate and show the statistics that are published beside them."""

from pathlib import Path

import numpy as np
import pytest

from moesim.model import ModelSpec
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.trace import Trace
from moesim.trace_import import Labels, import_trace
from moesim.trace_summary import summarize

SHARED = Path(__file__).parents[2].parent / "shared" / "traces"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the recordings of real models are not at {SHARED}")

# file: shape and experts; then overlap with the previous token, shuffled, LRU at 25 %, busiest tenth, as the table
# beside the recordings gives them; GPT-OSS-20B's row there is of another part of the file than its first tokens
REAL = {
    "nvmoe/olmoe-all.tokens.jsonl": ((897, 16, 8), 64, (0.415, 0.191, 0.55, 0.25), 0.007),
    "nvmoe/dsv2lite-all.tokens.jsonl": ((1396, 26, 6), 64, (0.242, 0.106, 0.41, 0.17), 0.007),
    "nvmoe/gptoss-all.tokens.jsonl": ((1396, 36, 4), 128, (0.504, 0.185, 0.87, 0.59), 0.007),
    "gpt-oss-20b/gptoss20b_decode_experts.npz": ((215_438, 24, 4), 32, (0.445, 0.198, 0.63, 0.23), 0.025),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_recording_imports_and_looks_as_published(name, tmp_path):
    shape, experts, (overlap, shuffled, lru, busiest), tolerance = REAL[name]
    import_trace(SHARED / name).save(tmp_path / "a.safetensors")
    trace = Trace.load(tmp_path / "a.safetensors")
    trace.validate()
    assert trace.experts.shape == shape
    assert (trace.experts.dtype, trace.n_experts) == (np.uint8, experts)
    assert not trace.metadata.synthetic
    model = ModelSpec.load(trace.metadata.model)
    assert (model.moe_layers, model.experts, model.top_k) == (trace.metadata.moe_layers, experts, shape[2])
    found = summarize(trace, 20_000)["statistics"]
    assert found["overlap_with_previous_token"] == pytest.approx(overlap, abs=tolerance)
    assert found["overlap_shuffled"] == pytest.approx(shuffled, abs=tolerance)
    assert found["busiest_tenth_share"] == pytest.approx(busiest, abs=tolerance)
    assert found["lru_hit_rate_at_quarter"] == pytest.approx(lru, abs=tolerance)


@pytest.mark.parametrize(("name", "first_layer"), [("dsv2lite-all", 1), ("gptoss-all", 0)])
def test_the_known_requests_are_marked(name, first_layer):
    trace = import_trace(SHARED / "nvmoe" / f"{name}.tokens.jsonl")
    assert np.flatnonzero(np.diff(trace.request)).tolist() == [398, 797, 1196]
    assert trace.position[[0, 398, 399, 797, 798, 1196, 1197, 1395]].tolist() == [0, 398, 0, 398, 0, 398, 0, 198]
    assert [each.kind for each in trace.metadata.requests] == ["chat", "code", "story", "summarize"]
    assert trace.metadata.moe_layers[0] == first_layer


def test_gate_weights_and_positions_of_gpt_oss_20b():
    trace = import_trace(SHARED / "gpt-oss-20b" / "gptoss20b_decode_experts.npz")
    with np.load(SHARED / "gpt-oss-20b" / "gptoss20b_decode_probs_f16.npz", allow_pickle=False) as held:
        np.testing.assert_array_equal(trace.weights, held["probs"])
    with np.load(SHARED / "gpt-oss-20b" / "gptoss20b_decode_experts.npz", allow_pickle=False) as held:
        np.testing.assert_array_equal(trace.experts, held["experts"])
        starts = held["offsets"]
    assert len(trace.metadata.requests) == 703
    assert trace.position[starts[:3]].tolist() == [101, 97, 103]
    assert trace.metadata.requests[0].prompt_tokens == 101


def test_a_recording_of_another_length_gets_no_marks(tmp_path):
    lines = (SHARED / "nvmoe" / "dsv2lite-all.tokens.jsonl").read_text().splitlines()[:500]
    (tmp_path / "dsv2lite-all.tokens.jsonl").write_text("\n".join(lines))
    trace = import_trace(tmp_path / "dsv2lite-all.tokens.jsonl", labels=Labels(name="cut"))
    assert trace.metadata.requests == []
    assert set(trace.request.tolist()) == {0}


@pytest.mark.parametrize("policy", ["on-demand", "lru"])
@pytest.mark.parametrize("name", REAL)
def test_a_real_recording_replays(name, policy, tmp_path):
    trace = import_trace(SHARED / name)
    trace.slice(0, 40).save(tmp_path / "a.safetensors")
    result = simulate(RunConfig(
        trace=tmp_path / "a.safetensors", model=trace.metadata.model, hardware="rtx-a6000", policy=policy,
        cache_fraction=0.25 if policy == "lru" else 0.0, context_tokens=1024, warmup_tokens=8, interval=False,
    )).row()
    accesses = 32 * trace.layers * trace.top_k
    assert result["hits"] + result["misses"] == accesses
    assert (result["hits"] > 0) == (policy == "lru")
