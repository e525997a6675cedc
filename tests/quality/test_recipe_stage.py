"""The recipe's stage on a tiny untrained model: text it may use, one file beside the trace."""

import json

import numpy as np
import pytest
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from moesim.quality.stored import load
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors import fit
from moesim.record.predictors.fitting_text import FittingText
from moesim.record.weights import weights_sha256
from traces.recipes import corpus, quality
from traces.recipes.shapes import Shape
from traces.recipes.write import CHECKPOINT, write_measurements

SHAPE = Shape(
    name="tiny-3x8", description="", seconds=1.0, peak_learning_rate=0.1, sequences_per_step=1, prompt_tokens=6,
    decode_tokens=4, trace_predictors=("residual",),
    config=OlmoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_experts=8,
        num_experts_per_tok=2, pad_token_id=None, eos_token_id=None,
    ),
)


def test_the_stage_measures_text_that_was_not_fitted_on(tmp_path, monkeypatch, capsys):
    for name, value in {"BLOCK_TOKENS": 40, "PROMPT_TOKENS": 30, "WARMUP_TOKENS": 2, "LANES": 4}.items():
        monkeypatch.setattr(quality, name, value)
    torch.manual_seed(0)
    model = OlmoeForCausalLM(SHAPE.config).eval()
    model.save_pretrained(tmp_path / CHECKPOINT)
    draw = np.random.default_rng(1)
    held_out = {kind: draw.integers(0, 64, 90).astype(np.uint16) for kind in corpus.KINDS}
    learned = torch.from_numpy(held_out[corpus.KINDS[0]][:80].astype(np.int64)).view(2, 40)
    text = FittingText.of_batches([learned, torch.from_numpy(draw.integers(0, 64, (2, 40)))], "made up")
    layers = find_moe_layers(model)
    vectors = fit.default_vectors(model, layers, text)
    vectors.save(tmp_path / "vectors.safetensors")
    fit.estimator(model, layers, text, vectors).save(tmp_path / "estimator.safetensors")
    made = corpus.Corpus(train={}, held_out=held_out, requests={}, description={})
    quality.quality_stage(SHAPE, made, tmp_path, "cpu", 160)
    found = load(tmp_path / "tiny-3x8.quality.json")
    assert found.text.blocks == 4
    blocks = [json.loads(line)["tokens"] for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    # The first kind was fitted on: the text begins with the second.
    assert blocks == [held_out[kind][:40].tolist() for kind in corpus.KINDS[1:5]]
    assert found.weights_sha256 == weights_sha256(model)
    assert {each.predictor for each in found.measured} >= {"estimator", "hybrid", "residual+default-vectors"}
    assert found.measured[0].perplexity.value == pytest.approx(64, rel=0.2)
    (tmp_path / "out").mkdir()
    write_measurements("tiny-3x8", tmp_path, tmp_path / "out")
    write_measurements("no-such", tmp_path, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["tiny-3x8.quality.json"]
    (tmp_path / "recall.json").write_text("{}")  # what the stage `predictors` leaves
    write_measurements("tiny-3x8", tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "tiny-3x8.recall.json").read_text() == "{}"
    capsys.readouterr()
