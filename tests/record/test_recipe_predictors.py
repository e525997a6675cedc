"""The recipe's stage that fits, records and measures every predictor, on a model of three layers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import OlmoeConfig

from moesim.errors import InputError
from moesim.record.predictors.chosen import NAMES
from moesim.record.predictors.recall_report import print_report
from moesim.trace import Trace
from traces.recipes import corpus, predictors, training
from traces.recipes.shapes import Shape
from traces.recipes.write import CHECKPOINT


def made_up_corpus(prompt: int) -> corpus.Corpus:
    random = np.random.default_rng(0)
    arrays = {kind: random.integers(0, 64, 400).astype(np.uint16) for kind in corpus.KINDS}
    requests: Any = {kind: [{"tokens": array[:prompt].tolist()}] * 3 for kind, array in arrays.items()}
    return corpus.Corpus(train=arrays, held_out=arrays, requests=requests, description={"vocabulary": 64})


def shape(decode_tokens: int) -> Shape:
    return Shape(
        name="tiny-3x16", description="tiny", seconds=1.0, peak_learning_rate=0.02, sequences_per_step=4,
        prompt_tokens=6, decode_tokens=decode_tokens, trace_predictors=("residual",),
        config=OlmoeConfig(
            vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            num_experts=16, num_experts_per_tok=8, pad_token_id=None, eos_token_id=None,
        ),
    )


def test_every_predictor_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "SEQUENCE_TOKENS", 64)
    monkeypatch.setattr(predictors, "FIT_BATCHES", 2)
    small = shape(4)
    training.build_model(small, "cpu").save_pretrained(tmp_path / CHECKPOINT)
    predictors.predictors_stage(small, made_up_corpus(10), tmp_path, "cpu")
    trace = Trace.load(tmp_path / "tiny-3x16-predictors.safetensors")
    expected = [*(name for name in NAMES if name != "residual-3-ahead"), *(f"self-draft-{j}" for j in (1, 2, 3, 4))]
    assert set(trace.metadata.predictors) == set(expected)
    told = json.loads((tmp_path / "recall.json").read_text())
    assert set(told["predictors"]) == {*expected, "previous-token", "static-frequency", "activation-matrix"}
    # Int4 experts in a model of random weights hardly move the routers.
    assert told["predictors"]["self-draft-1"]["recall_at_k"] > 0.8
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "vectors.safetensors", "estimator.safetensors", "arch1.safetensors", "arch2.safetensors",
        "tiny-3x16-predictors.safetensors",
    }
    capsys.readouterr()
    print_report(told, Console(width=80))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("layer    ") == 2  # fifteen columns do not fit beside each other
    # Requests long enough to be known again, out of the text that was fitted on.
    with pytest.raises(InputError, match="was fitted"):
        predictors.predictors_stage(shape(100), made_up_corpus(106), tmp_path, "cpu")
    capsys.readouterr()
