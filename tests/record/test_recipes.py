"""The recipes on small made-up input: text cleaning, the split, and training and recording from end to end."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, OlmoeConfig

from moesim.record.recording import Recording
from traces.recipes import corpus, smaller_vocabulary, stages, text, training
from traces.recipes.__main__ import VOCABULARIES
from traces.recipes.shapes import SHAPES, Shape
from traces.recipes.write import MOST_WEIGHT_BYTES


def test_html_becomes_lines_of_visible_text() -> None:
    page = """<html><head><title>hidden</title></head><body><nav>menu</nav><h1>Ring&nbsp;theory ¶</h1>
    <p>A <b>ring</b>
    is a set.</p><script>var x;</script><pre>sage: 1
  2</pre></body></html>"""
    assert text.html_text(page) == "Ring theory\nA ring is a set.\nsage: 1\n  2"


def test_repeated_long_lines_go_and_short_ones_stay() -> None:
    long = "This sentence is well over thirty characters long."
    given = [("a", f"{long}\nyes\n{long}"), ("b", f"> {long}\nyes\nnew")]
    assert list(text.unique_lines(given)) == [("a", f"{long}\nyes"), ("b", "yes\nnew")]


def test_lines_outside_the_script_go() -> None:
    given = [("a", "Text style\nСтиль текста\nOK")]
    assert list(text.lines_in_script(given, corpus.SCRIPTS["russian"])) == [("a", "Стиль текста")]


def test_the_split_depends_on_the_key_alone_and_hits_its_share() -> None:
    keys = [f"page/{number}.html" for number in range(20_000)]
    held_out = [key for key in keys if text.is_held_out(key, 0.03)]
    assert len(held_out) / len(keys) == pytest.approx(0.03, abs=0.005)
    assert held_out == [key for key in keys if text.is_held_out(key, 0.03)]


def test_tagged_words_lose_their_tags(tmp_path: Path) -> None:
    (tmp_path / "ca01").write_text("\tThe/at jury/nn said/vbd ``/`` no/at ''/'' ,/, and/cc left/vbd ./.\n")
    assert list(text.tagged_corpus(tmp_path)) == [("ca01", 'The jury said "no", and left.')]


def test_strings_come_out_of_a_lazy_load_database(tmp_path: Path) -> None:
    lines = ["CHAPTER I", "It is a truth", "CHAPTER II", "Mr. Bennet"]
    serialized = b"".join(b"\x00\x04\x00\x09" + len(line).to_bytes(4) + line.encode() for line in lines)
    (tmp_path / "data").mkdir()
    record = len(serialized).to_bytes(4) + zlib.compress(serialized)
    (tmp_path / "data" / "books.rdb").write_bytes(record + record)
    chapters = [body for _, body in text.r_strings(tmp_path)]
    assert chapters == ["CHAPTER I\nIt is a truth", "CHAPTER II\nMr. Bennet"] * 2


def test_a_message_keeps_sender_subject_and_text(tmp_path: Path) -> None:
    raw = "From x Thu\nFrom: Ann <a@b.c>\nSubject: Hello\nX-Loop: 1\nContent-Type: text/html\n\n<p>Dear Bob</p>"
    (tmp_path / "1.json").write_text(json.dumps({"text": raw}))
    ((key, body),) = text.messages(tmp_path)
    assert key.endswith("/1")
    assert body == "From: Ann <a@b.c>\nSubject: Hello\n\nDear Bob"


def test_the_vocabulary_and_the_arrays_give_the_text_back() -> None:
    documents = [("a", "der Hund und die Katze"), ("b", "собака и кошка")]
    tokenizer = corpus.train_tokenizer({"mixed": documents})
    tokens = corpus.encode(tokenizer, documents, 1000)
    first, second, rest = np.split(tokens, np.flatnonzero(tokens == corpus.SEPARATOR) + 1)
    assert tokenizer.decode(first[:-1].tolist()) == "der Hund und die Katze"
    assert tokenizer.decode(second[:-1].tolist()) == "собака и кошка"
    assert len(rest) == 0


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_have_the_routing_that_they_are_named_after(name: str) -> None:
    shape = SHAPES[name](corpus.VOCABULARY)
    assert name == f"reference-{shape.config.num_hidden_layers}x{shape.config.num_experts}"
    assert shape.config.num_experts_per_tok == (2 if name == "reference-8x16" else 8)


def test_the_weights_that_ship_fit_into_the_repository() -> None:
    shape = SHAPES["reference-8x16"](VOCABULARIES["reference-8x16"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config)
    # A checkpoint names every expert's matrices: 100 bytes each, beside the weights themselves.
    parameters = sum(each.numel() for each in model.parameters())
    assert 2 * parameters + 100 * (3 * 8 * 16 + 100) < MOST_WEIGHT_BYTES


def test_a_smaller_vocabulary_is_the_first_merges_of_the_large_one() -> None:
    text = "the cat sat on the mat and the dog sat on the cat while another cat looked at the dog and the mat"
    documents = [("a", text[i % 7 :] + text[: i % 5]) for i in range(20)]
    large = corpus.train_tokenizer({"mixed": documents})
    vocabulary = large.get_vocab_size() - 12
    table = json.loads(large.to_str())
    small = Tokenizer.from_str(json.dumps(smaller_vocabulary.truncated(table, vocabulary)))
    pieces = smaller_vocabulary.decompositions(table["model"], vocabulary)
    for _, body in documents:
        ids = np.array(large.encode(body).ids, dtype=np.uint16)
        # The library's own encoder with the truncated table is the oracle.
        assert smaller_vocabulary.converted(ids, pieces).tolist() == small.encode(body).ids
        assert ids.max() >= vocabulary > max(small.encode(body).ids)


def test_the_rate_rises_from_nothing_and_falls_to_its_last_share() -> None:
    assert training.rate_share(0.0) < 0.1
    assert training.rate_share(training.WARM_UP_SHARE) == pytest.approx(1.0)
    assert training.rate_share(1.0) == pytest.approx(training.FINAL_RATE_SHARE)


def test_a_model_is_trained_and_recorded_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "SEQUENCE_TOKENS", 32)
    monkeypatch.setattr(stages, "DEFAULT_VECTOR_BATCHES", 1)
    torch.manual_seed(0)
    shape = Shape(
        name="tiny-2x16", description="", seconds=600.0, peak_learning_rate=0.02, sequences_per_step=4,
        prompt_tokens=6, decode_tokens=4, trace_predictors=("residual", "residual+default-vectors"),
        config=OlmoeConfig(
            vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_experts=16, num_experts_per_tok=8, pad_token_id=None, eos_token_id=None,
        ),
    )
    # Text that can be learned: every kind counts upwards from its own number, in a circle of eight.
    arrays = {kind: (8 * at + np.arange(2_000) % 8).astype(np.uint16) for at, kind in enumerate(corpus.KINDS)}
    requests: Any = {kind: [{"tokens": array[:200].tolist()}] * 3 for kind, array in arrays.items()}
    small = corpus.Corpus(train=arrays, held_out=arrays, requests=requests, description={})
    stages.train_stage(shape, small, tmp_path, "cpu", shape.seconds, most_steps=60)
    told = json.loads((tmp_path / "training.json").read_text())
    assert max(told["perplexity"].values()) < 48  # 64 before the first step
    assert told["steps"] == 60
    assert told["tokens"] == 60 * 4 * 32

    stages.record_stage(shape, small, tmp_path, "cpu")
    recording = Recording.load(tmp_path / "tiny-2x16.recording.safetensors")
    assert recording.experts.shape == (3 * 8 * 10, 2, 8)
    assert set(recording.predicted) == {"residual", "residual+default-vectors"}
    scored = Recording.load(tmp_path / "tiny-2x16-scores.recording.safetensors")
    assert scored.scores is not None
    assert scored.scores.shape == (3 * 96, 2, 16)
    kinds = [each["kind"] for each in json.loads((tmp_path / "recording.json").read_text())["requests"]["tiny-2x16"]]
    assert kinds == list(corpus.KINDS) * 3
    capsys.readouterr()


def test_the_balance_loss_is_one_for_even_routers_and_more_for_others() -> None:
    class Router(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return logits, logits, logits.topk(1).indices

    class Layer:
        router = Router()

    balance = training.RouterBalance([Layer()])  # type: ignore[list-item]
    Layer.router(torch.eye(4) * 1e-3)
    assert balance.loss().item() == pytest.approx(1.0, abs=1e-3)
    Layer.router(torch.tensor([[9.0, 0.0, 0.0, 0.0]] * 4))
    assert balance.loss().item() > 3.9
