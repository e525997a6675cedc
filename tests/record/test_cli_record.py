"""`moesim record` on a checkpoint folder: what it writes, what it says, what it refuses."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from moesim.cli import main
from moesim.record import checkpoint
from moesim.trace import Trace
from tests.record.families import VOCABULARY, build

WORDS = {f"w{number}": number for number in range(VOCABULARY - 1)} | {"?": VOCABULARY - 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny-olmoe"
    build("olmoe").save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["moesim", "record", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        main()
    captured = capsys.readouterr()
    assert isinstance(status.value.code, int)
    return status.value.code, captured.out, captured.err


def test_a_text_file_becomes_a_trace(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "t.safetensors"
    prompts.write_text("w1 w2 w3\n\nw4 w5\n")
    status, said, told = run(
        monkeypatch, capsys, folder, "--prompts", prompts, "--out", out, "--max-new-tokens", 5, "--batch", 2,
        "--scores", "--predictors", "residual, router-input", "--ranked", 4,
    )
    assert status == 0
    assert f"{out}: 13 tokens" in said
    assert "weights 0." in told
    assert "KV cache" in told
    assert "5 of 5 passes" in told
    trace = Trace.load(out)
    trace.validate()
    assert trace.metadata.tokenizer == "that of tiny-olmoe"
    assert list(trace.predicted) == ["residual", "router-input"]
    assert trace.predicted["residual"].ranking.shape[-1] == 4
    assert trace.scores is not None
    # The same through Python, on the model object, with the token ids that the words stand for.
    import moesim

    own = moesim.record(build("olmoe"), [[1, 2, 3], [4, 5]], max_new_tokens=5, batch=2)
    np.testing.assert_array_equal(own.experts, trace.experts)
    assert own.metadata.provenance["weights_sha256"] == trace.metadata.provenance["weights_sha256"]


def test_jsonl_gives_kinds_continuations_and_token_ids(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "t.safetensors"
    prompts.write_text(
        '{"prompt": "w1 w2", "continuation": "w3 w4", "kind": "code"}\n{"tokens": [1, 2, 3, 4], "prompt_tokens": 2}\n'
    )
    status, _, told = run(
        monkeypatch, capsys, folder, "--prompts", prompts, "--out", out, "--max-new-tokens", 0, "--quiet"
    )
    assert (status, told) == (0, "")
    trace = Trace.load(out)
    assert trace.metadata.decoding == "teacher-forced"
    assert [(each.kind, each.prompt_tokens) for each in trace.metadata.requests] == [("code", 2), ("text", 2)]
    np.testing.assert_array_equal(trace.experts[:4], trace.experts[4:])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "w1", "knd": "x"}', "line 1: unknown key 'knd': did you mean kind?"),
        ('{"kind": "x"}', "line 1: it has either prompt or tokens"),
        ('{"tokens": [1], "prompt_tokens": 0}', "line 1: prompt_tokens: Input should be greater than or equal to 1"),
        ('{"tokens": [1, 2], "prompt_tokens": 3}', "prompt 0: 3 prompt tokens of 2: at least 1, at most all of them"),
        ('{"tokens": [900]}', f"prompt 0: token id 900: the model's vocabulary has {VOCABULARY}"),
        ('{"tokens": "w1"}', "line 1: tokens: Input should be a valid array"),
        ("w1", "line 1: Invalid JSON"),
        ("", "it holds no prompt"),
    ],
)
def test_prompts_that_cannot_be_used_are_named_with_their_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    line: str, said: str,
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(line)
    status, _, told = run(monkeypatch, capsys, folder, "--prompts", prompts, "--out", tmp_path / "t.safetensors", "-q")
    assert status == 2
    assert f"prompts.jsonl: {said}" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--predictors", "residul"], "predictor 'residul' is unknown: did you mean residual"),
        (["--predictors", "estimator"], "predictor 'estimator' needs what `moesim fit estimator` writes"),
        (["--predictors", "residual,residual"], "--predictors residual,residual: each at most once"),
        (["--device", "abacus"], "--device abacus: Expected one of cpu, cuda"),
        (["--dtype", "float8"], "--dtype float8: known: auto, float32, bfloat16, float16"),
        (["--out", "nowhere/t.safetensors"], "nowhere/t.safetensors: there is no folder nowhere"),
        (["--max-new-tokens", "200"], "1 tokens and 200 new ones, the last not run: the model's context is 128"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], said: str,
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1\n")
    status, _, told = run(
        monkeypatch, capsys, folder, "--prompts", prompts, "--out", tmp_path / "t.safetensors", "-q", *options
    )
    assert status == 2
    assert said in told
    assert told.count("\n") == 1


def test_models_that_cannot_be_used_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1\n")
    rest = ("--prompts", prompts, "--out", tmp_path / "t.safetensors", "-q")
    LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )).save_pretrained(tmp_path / "dense")
    status, _, told = run(monkeypatch, capsys, tmp_path / "dense", *rest)
    assert (status, told) == (
        2, "error: LlamaForCausalLM has no routed experts: no module whose class is named *Router\n"
    )
    (tmp_path / "empty").mkdir()
    status, _, told = run(monkeypatch, capsys, tmp_path / "empty", *rest)
    assert status == 2
    assert "empty: cannot be loaded by transformers: " in told
    assert told.count("\n") == 1
    # Refused before the weights are read: the folder of this model has none.
    (folder.parent / "hollow").mkdir(exist_ok=True)
    (folder.parent / "hollow" / "config.json").write_text((folder / "config.json").read_text())
    monkeypatch.setattr("moesim.record.memory.free_bytes", lambda device: 1000)
    status, _, told = run(monkeypatch, capsys, folder.parent / "hollow", *rest)
    assert status == 2
    assert "hollow: the weights alone are 0." in told
    assert "0.0 MB are free on cpu" in told


def test_the_weights_are_as_large_without_as_with_their_values(folder: Path) -> None:
    model, _ = checkpoint.load_model(str(folder), "cpu", "bfloat16")
    parameters = sum(each.numel() for each in model.parameters())
    assert next(model.parameters()).dtype == torch.bfloat16
    assert 2 * parameters <= checkpoint.weight_bytes(model) < 2 * parameters + 1000  # and rotary frequencies


def test_a_killed_recording_is_continued_by_the_same_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"tokens": [{number}, 5, 6]}}\n' for number in range(60)))

    def arguments(name: str) -> list[str]:
        return [str(folder), "--prompts", str(prompts), "--out", str(tmp_path / name), "--max-new-tokens", "20"]

    assert run(monkeypatch, capsys, *arguments("whole.safetensors"))[0] == 0
    journal = tmp_path / ".t.safetensors.recording" / "journal.jsonl"
    command = [sys.executable, "-c", "from moesim.cli import main; main()", "record", *arguments("t.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -9
    assert not (tmp_path / "t.safetensors").exists()
    finished = journal.read_bytes().count(b"\n") - 1
    assert f"{20 * finished} of 1200 passes" in run(monkeypatch, capsys, *arguments("t.safetensors"))[2]
    first, second = (Trace.load(tmp_path / name) for name in ("whole.safetensors", "t.safetensors"))
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name])
