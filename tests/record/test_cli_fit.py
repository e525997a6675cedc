"""`moesim fit` from a checkpoint on disk to predictors that a recorder can use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import InputError
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.captured_batches import captured_batches
from moesim.record.predictors.chosen import NAMES, load_fitted, predictors_by_name, refuse_fitted_on
from moesim.record.predictors.default_vectors import fit_default_vectors
from moesim.record.predictors.fitting_text import refuse_recorded, text_of_tokens, tokens_of_file
from moesim.record.predictors.predictor import foresee
from moesim.record.predictors.token_windows import WINDOWS_KEY, aligned_hashes, hashes_of_text, text_of_hashes
from moesim.record.weights import weights_sha256
from tests.record.tiny_models import EXPERTS, VOCABULARY, olmoe
from tests.traces_for_tests import random_trace

SMALL = ["--sequence-tokens", "40", "--batch", "4", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a text of token ids, and everything that can be fitted on them."""
    made = tmp_path_factory.mktemp("fit")
    olmoe().save_pretrained(made / "model")
    ids = np.random.default_rng(6).integers(0, VOCABULARY, 40 * 24)
    np.save(made / "text.npy", ids)
    vectors = ["--default-vectors", str(made / "default-vectors.safetensors")]
    for command in (
        ["default-vectors"],
        ["estimator", *vectors, "--m", "2", "--n", "3", "--step-tokens", "64"],
        ["pre-attention", "--architecture", "arch1", "--width", "16", "--step-tokens", "64"],
        ["pre-attention", "--architecture", "arch2", "--width", "16", "--step-tokens", "64"],
    ):
        out = made / f"{command[0] if command[0] != 'pre-attention' else command[2]}.safetensors"
        done = run(made, *command, "--out", str(out))
        assert done.exit_code == 0, done.output
    return made


def run(folder: Path, kind: str, *options: str) -> Any:
    return CliRunner().invoke(
        app, ["fit", kind, str(folder / "model"), "--text", str(folder / "text.npy"), *options, *SMALL]
    )


def files(folder: Path) -> list[Any]:
    own = weights_sha256(olmoe())
    return [load_fitted(path, own) for path in sorted(folder.glob("*.safetensors"))]


def test_all_predictors_can_be_made_of_what_was_fitted(folder: Path) -> None:
    model = olmoe()
    layers = find_moe_layers(model)
    predictors = predictors_by_name(NAMES, layers, files(folder))
    assert tuple(each.name for each in predictors) == NAMES
    (captured,) = captured_batches(model, layers, [torch.arange(20)[None]], attention_input=True)
    for each in predictors:
        predicted = foresee(each, captured)
        assert predicted.shape == (5, 20, EXPERTS)
        assert (predicted[: each.availability.layer_offset] == 0).all()
        torch.testing.assert_close(
            predicted[each.availability.layer_offset :].sum(-1), torch.ones(5 - each.availability.layer_offset, 20)
        )


def test_files_hold_no_pickle_and_say_where_they_come_from(folder: Path) -> None:
    with safe_open(folder / "estimator.safetensors", "np") as file:
        about = json.loads(file.metadata()["about"])
    assert about["weights_sha256"] == weights_sha256(olmoe())
    assert about["settings"] == {"reduction": 2, "expansion": 3, "learning_rate": 1e-3, "step_tokens": 64}
    assert about["tokens"] == 40 * 24
    assert about["seed"] == 0
    assert about["validation_tokens"] == 4 * 40
    assert about["wins"] == [
        at for at in range(1, 5) if about["validation_recall"][at] > about["validation_recall_without"][at]
    ]


def test_the_vectors_are_means_over_the_text(folder: Path) -> None:
    model = olmoe()
    ids = torch.from_numpy(np.load(folder / "text.npy")).view(24, 40)
    expected, counts = fit_default_vectors(model, find_moe_layers(model), [ids], EXPERTS)
    kept = next(each for each in files(folder) if each.kind == "default-vectors")
    torch.testing.assert_close(kept.tensors["vectors"], expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(kept.tensors["counts"], counts)


def test_text_that_was_fitted_on_is_refused_when_recorded(folder: Path) -> None:
    ids = np.load(folder / "text.npy")
    other = np.random.default_rng(7).integers(0, VOCABULARY, 200)
    predictors = predictors_by_name(["residual+default-vectors", "hybrid"], find_moe_layers(olmoe()), files(folder))
    refuse_fitted_on(predictors, [other])
    with pytest.raises(InputError, match=r"sequence 1: .* part of text.npy, on which default-vectors was fitted"):
        refuse_fitted_on(predictors, [other, np.concatenate([other[:9], ids[80:160]])])


def test_text_of_a_trace_is_refused_when_fitted() -> None:
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 400)
    trace = random_trace()
    with pytest.raises(InputError, match="its provenance has no token_windows"):
        refuse_recorded(text_of_tokens(ids, "text", sequence_tokens=100), trace)
    kept = text_of_hashes(aligned_hashes([ids[130:200]]))
    np.testing.assert_array_equal(hashes_of_text(kept), aligned_hashes([ids[130:200]]))
    trace.metadata.provenance[WINDOWS_KEY] = kept
    refuse_recorded(text_of_tokens(ids[200:], "text", sequence_tokens=100), trace)
    with pytest.raises(InputError, match="are part of test, which is to be evaluated"):
        refuse_recorded(text_of_tokens(ids, "text", sequence_tokens=100), trace)


def test_the_text_is_cut_shuffled_and_bounded() -> None:
    text = text_of_tokens(range(105), "text", sequence_tokens=10, batch_sequences=4, seed=3)
    assert [tuple(batch.shape) for batch in text.batches] == [(4, 10), (4, 10), (2, 10)]
    assert sorted(torch.cat(text.batches).flatten().tolist()) == list(range(100))
    assert text.batches[0][0, 0] != 0 or text.batches[0][1, 0] != 10
    assert text_of_tokens(range(105), "text", sequence_tokens=10, most_tokens=35).tokens == 30
    fitted, validation = text.split(0.1)
    assert (len(fitted), len(validation)) == (2, 1)


@pytest.mark.parametrize(
    ("arrange", "options", "rule"),
    [
        ({"text.npy": np.array([0, VOCABULARY])}, [], "the model's vocabulary has 97"),
        ({"text.npy": np.zeros((2, 2), int)}, [], "token ids are one row of integers"),
        ({"text.npy": np.zeros(30, int)}, [], "30 tokens: one sequence has 40"),
        ({}, ["--device", "tpu9"], "--device tpu9"),
        ({}, ["--dtype", "int3"], "--dtype int3: known: auto"),
        ({}, ["--out", "nowhere/x.safetensors"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    folder: Path, tmp_path: Path, arrange: dict[str, Any], options: list[str], rule: str
) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    np.save(tmp_path / "text.npy", np.load(folder / "text.npy"))
    for name, array in arrange.items():
        np.save(tmp_path / name, array)
    found = run(tmp_path, "default-vectors", "--out", str(tmp_path / "out.safetensors"), *options)
    assert isinstance(found.exception, InputError)
    assert rule in str(found.exception)
    assert "\n" not in str(found.exception)
    assert not (tmp_path / "out.safetensors").exists()


def test_vectors_of_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    other = olmoe()
    with torch.no_grad():
        other.lm_head.weight += 1
    with pytest.raises(InputError, match="fit again"):
        load_fitted(folder / "estimator.safetensors", weights_sha256(other))
    with pytest.raises(InputError, match="moesim fit pre-attention --architecture arch1"):
        predictors_by_name(["pre-attention-arch1"], find_moe_layers(other), [])
    with pytest.raises(InputError, match="did you mean estimator"):
        predictors_by_name(["estimater"], find_moe_layers(other), [])


def test_text_needs_utf8_and_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "text.txt"
    broken.write_bytes(b"abc\xff")
    with pytest.raises(InputError, match="byte 3: text is UTF-8"):
        tokens_of_file(broken, lambda: None, 9)
    broken.write_text("a b a")
    ids = tokens_of_file(broken, lambda: lambda text, add_special_tokens: {"input_ids": [len(text), 3]}, 9)
    assert ids.tolist() == [5, 3]


def test_recording_refuses_what_was_fitted_on_and_fitting_what_was_recorded(folder: Path, tmp_path: Path) -> None:
    ids = np.load(folder / "text.npy")
    fitted = ["--predictors", "hybrid", "--fitted", str(folder / "estimator.safetensors")]

    def record(tokens: Any, name: str) -> Any:
        (tmp_path / "prompts.jsonl").write_text(json.dumps({"tokens": tokens.tolist(), "prompt_tokens": 8}))
        return CliRunner().invoke(app, [
            "record", str(folder / "model"), "--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "0",
            "--out", str(tmp_path / name), "--quiet", *fitted,
        ])

    assert "on which estimator was fitted" in str(record(ids[35:90], "seen.safetensors").exception)
    other = np.random.default_rng(7).integers(0, VOCABULARY, 60)
    done = record(other, "other.safetensors")
    assert done.exit_code == 0, done.output
    np.save(tmp_path / "more.npy", np.concatenate([ids, other]))
    again = CliRunner().invoke(app, [
        "fit", "default-vectors", str(folder / "model"), "--text", str(tmp_path / "more.npy"), "--out",
        str(tmp_path / "v.safetensors"), "--held-out", str(tmp_path / "other.safetensors"), *SMALL,
    ])
    assert "which is to be evaluated" in str(again.exception)
