"""`moesim quality` from a checkpoint on disk to a file, and what it says of input that does not fit."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import InputError
from moesim.quality.stored import load
from moesim.record.weights import weights_sha256
from tests.record.tiny_models import VOCABULARY, olmoe

FULL = {"resident-execute", "drop", "substitute", "low-precision"}
SMALL = ["--block", "24", "--prompt", "14", "--warmup", "3", "--lanes", "2", "--quiet", "--cache", "40%"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, default vectors fitted on one text, and another text."""
    made = tmp_path_factory.mktemp("quality")
    olmoe().save_pretrained(made / "model")
    draw = np.random.default_rng(6)
    np.save(made / "fit.npy", draw.integers(0, VOCABULARY, 640))
    np.save(made / "text.npy", draw.integers(0, VOCABULARY, 24 * 5 + 7))
    done = CliRunner().invoke(app, [
        "fit", "default-vectors", str(made / "model"), "--text", str(made / "fit.npy"), "--sequence-tokens", "40",
        "--batch", "4", "--quiet", "--out", str(made / "vectors.safetensors"),
    ])
    assert done.exit_code == 0, done.output
    return made


def run(folder, *options, text="text.npy", model="model"):
    arguments = ["quality", str(folder / model), "--text", str(folder / text), *SMALL, *options]
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def measured(folder):
    out = folder / "tiny.quality.json"
    done = run(folder, "--fitted", str(folder / "vectors.safetensors"), "--out", str(out))
    assert done.exit_code == 0, done.output
    return load(out)


def test_the_file_says_what_was_measured_on_what(measured):
    assert measured.weights_sha256 == weights_sha256(olmoe())
    text = measured.text
    assert (text.source, text.blocks, text.tokens) == ("text.npy", 5, 120)
    # 5 blocks of 24: a prompt of 14, then 9 foretold; of each of the two lanes, 3 are warm-up
    assert text.tokens_measured == 5 * 9 - 2 * 3
    names = {each.mode for each in measured.measured}
    assert names == {
        "true", "speculate-and-execute", "resident-execute", "drop", "substitute", "cache-prior", "max-rank",
        "cumulative-threshold", "low-precision",
    }
    assert {each.cache_fraction for each in measured.measured} == {None, 0.4}
    assert measured.left_out == []
    assert measured.fitted["default-vectors"]["tokens"] == 640


def test_true_routing_costs_nothing_and_intervals_hold_their_values(measured):
    for each in measured.measured:
        for interval in (each.perplexity, each.perplexity_increase, each.kl_nats, each.top1_agreement):
            assert interval.low <= interval.value <= interval.high
        assert each.kl_nats.low >= 0
        if each.mode == "true":
            assert (each.kl_nats.high, each.perplexity_increase.high, each.top1_agreement.low) == (0, 0, 1)
        else:
            assert each.kl_nats.value > 0
        assert (each.weight_executed is None) == (each.mode not in FULL)


def test_perplexity_of_the_true_mode_is_the_plain_models(measured, folder):
    """Recomputed from transformers' logits: the counted tokens of every block."""
    ids = torch.from_numpy(np.load(folder / "text.npy")[:120].reshape(5, 24))
    with torch.inference_mode():
        likely = olmoe()(input_ids=ids).logits[:, 14:-1].double().log_softmax(-1)
    nll = -likely.gather(-1, ids[:, 15:, None])[..., 0]
    counted = torch.ones(5, 9, dtype=torch.bool)
    counted[0, :3] = counted[3, :3] = False  # blocks 0, 1, 2 are one lane's, 3 and 4 the other's
    assert measured.measured[0].perplexity.value == pytest.approx(nll[counted].mean().exp().item(), rel=1e-6)


def test_the_same_twice_and_as_json(folder):
    first, second = (run(folder, "--mode", "drop", "--json").stdout for _ in range(2))
    assert first == second
    assert json.loads(first)["format"] == "moesim-quality/1"


def test_text_and_jsonl(folder):
    lines = [json.dumps({"tokens": list(range(40))}), json.dumps({"tokens": list(range(50, 80))})]
    (folder / "text.jsonl").write_text("\n".join(lines))
    done = run(folder, "--mode", "low-precision", "--json", text="text.jsonl")
    assert json.loads(done.stdout)["text"]["blocks"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "dropp"], "did you mean drop?"),
        (["--mode", "resident-execute"], "moesim fit default-vectors"),
        (["--predictor", "residual-2-ahead"], "does not foresee the next layer"),
        (["--cache", "2%", "--mode", "drop"], "fewer slots than the model's top-k 3"),
        (["--cache", "lots"], "--cache lots"),
        (["--prompt", "23"], "at least one token is decoded"),
        (["--warmup", "60"], "leave nothing after 60 tokens of warm-up"),
        (["--tokens", "10"], "10 tokens: one block has 24"),
        (["--first-layer", "9", "--mode", "speculate-and-execute"], "1 to 4 can be speculated"),
        (["--out", "nowhere/x.json"], "there is no folder nowhere"),
        (["--dtype", "int3"], "--dtype int3: known: auto"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, options, message):
    failure = run(folder, *options).exception
    assert isinstance(failure, InputError)
    assert message in str(failure)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"tokens": [1, 2]}\n{"words": 3}', "line 2: expected"),
        ("torn.jsonl", b'{"tokens": [1, 2', "line 1 is not JSON"),
        ("binary.txt", b"\xff\xfe\x00", "text is UTF-8"),
        ("beyond.jsonl", json.dumps({"tokens": [500] * 30}).encode(), "vocabulary has 97"),
        ("array.npy", b"\x93NUMPY rest", "cannot be read as a NumPy array"),
    ],
)
def test_text_that_cannot_be_read_is_one_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    failure = run(folder, text=name).exception
    assert isinstance(failure, InputError)
    assert name in str(failure)
    assert message in str(failure)


def test_text_that_was_fitted_on_is_refused(folder):
    failure = run(folder, "--fitted", str(folder / "vectors.safetensors"), "--block", "40", text="fit.npy").exception
    assert isinstance(failure, InputError)
    assert "must not have been fitted on" in str(failure)
