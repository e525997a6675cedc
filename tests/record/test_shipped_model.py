"""The trained model whose weights ship: what it is said to be, and good enough to be worth recording."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moesim
from moesim.record.checkpoint import load_model, load_tokenizer
from moesim.record.weights import weights_sha256
from traces.recipes.__main__ import VOCABULARIES
from traces.recipes.shapes import SHAPES
from traces.recipes.write import MOST_WEIGHT_BYTES

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "traces" / "models" / "reference-8x16"


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(str(FOLDER))[0]


def test_the_weights_are_those_that_the_training_tells_of(model: Any) -> None:
    told = json.loads((FOLDER / "training.json").read_text())
    assert weights_sha256(model) == told["weights_sha256"]
    assert sum(each.numel() for each in model.parameters()) == told["parameters"]
    assert (FOLDER / "model.safetensors").stat().st_size < MOST_WEIGHT_BYTES
    shape = SHAPES["reference-8x16"](VOCABULARIES["reference-8x16"]).config
    for key in ("hidden_size", "num_hidden_layers", "num_experts", "num_experts_per_tok", "vocab_size"):
        assert getattr(model.config, key) == getattr(shape, key), key


def test_it_has_learned_to_read(model: Any) -> None:
    tokenizer = load_tokenizer(str(FOLDER))
    text = (REPOSITORY / "docs" / "design.md").read_text()  # written after it was trained
    ids = torch.tensor([tokenizer(text)["input_ids"][:512]])
    assert tokenizer.decode(ids[0].tolist())[:200] == text[:200]
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss < 0.8 * math.log(model.config.vocab_size)


def test_its_layers_spread_their_tokens_over_the_experts(model: Any) -> None:
    lines = (REPOSITORY / "README.md").read_text().split("\n\n")
    trace = moesim.record(model, [line for line in lines if len(line) > 80][:12], max_new_tokens=8, batch=4)
    trace.validate()
    for layer in range(trace.layers):
        # The text is English alone; experts that keep to another language stay unused.
        of_tokens = np.bincount(np.asarray(trace.experts[:, layer]).ravel(), minlength=16) / trace.tokens
        assert (of_tokens > 0).sum() >= 8
        assert of_tokens.max() < 0.8


def test_a_checkpoint_has_one_hash_in_every_type(model: Any) -> None:
    other = "bfloat16" if model.dtype == torch.float32 else "float32"
    cast, _ = load_model(str(FOLDER), dtype=other)
    assert cast.dtype != model.dtype
    assert weights_sha256(cast) == weights_sha256(model)
