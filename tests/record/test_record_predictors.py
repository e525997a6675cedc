"""All predictors on one model, from fitting to the recall that is printed: what a recipe runs in one go."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moesim.errors import InputError
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors import fit
from moesim.record.predictors.chosen import NAMES, predictors_by_name
from moesim.record.predictors.fitting_text import text_of_tokens
from moesim.record.predictors.recall_report import report
from moesim.record.predictors.record_predictors import record_predictors
from moesim.record.recorder import TokenSequence, record_requests
from moesim.trace import Trace, TraceMetadata
from tests.record.tiny_models import EXPERTS, TOP_K, VOCABULARY, qwen3


def test_from_fitting_to_recall(tmp_path: Path) -> None:
    model = qwen3()
    layers = find_moe_layers(model)
    random = np.random.default_rng(0)
    text = text_of_tokens(random.integers(0, VOCABULARY, 1280), "text", sequence_tokens=64, batch_sequences=5)
    vectors = fit.default_vectors(model, layers, text)
    fitted = [vectors, fit.estimator(model, layers, text, vectors)]
    fitted += [fit.pre_attention(model, layers, text, each, width=16) for each in ("arch1", "arch2")]
    requests = [
        TokenSequence("text", random.integers(0, VOCABULARY, length).tolist(), 5) for length in (40, 40, 9)
    ]
    recording, available = record_predictors(
        model, layers, requests, predictors_by_name(NAMES, layers, fitted), ranked=8, draft_tokens=2, draft_bits=None
    )
    assert list(available) == [*NAMES, "self-draft-1", "self-draft-2"]
    metadata = TraceMetadata(
        name="tiny", model="tiny", layers=len(layers), experts=EXPERTS, top_k=TOP_K,
        moe_layers=[layer.number for layer in layers], predictors=available, dataset="random", tokenizer="none",
        decoding="teacher-forced", recorder="moesim.record", recorder_version="0", licence="none", source="test",
    )
    recording.trace(metadata).save(tmp_path / "trace.safetensors")
    trace = Trace.load(tmp_path / "trace.safetensors")
    trace.validate()
    told = report(trace)["predictors"]
    assert told["self-draft-1"]["recall_at_k"] == 1.0
    assert told["self-draft-1"]["coverage"] == 1.0
    assert told["self-draft-2"]["coverage"] == pytest.approx((35 + 35 + 4 - 3) / (35 + 35 + 4))
    assert told["pre-attention-arch1"]["coverage"] == 1.0
    assert told["residual"]["coverage"] == pytest.approx(3 / 4)
    plain = record_requests(model, layers, requests, predictors=["residual"], ranked=8)
    np.testing.assert_array_equal(plain.predicted["residual"][0], recording.predicted["residual"][0])
    np.testing.assert_array_equal(plain.experts, recording.experts)
    assert torch.is_grad_enabled()
    seen = TokenSequence("text", text.batches[0][0].tolist(), 5)
    with pytest.raises(InputError, match="on which estimator was fitted"):
        record_predictors(model, layers, [seen], predictors_by_name(["hybrid"], layers, fitted))
