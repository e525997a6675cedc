"""One recording from prompts to trace: in memory or on disk, whole or continued, through Python."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moesim
from moesim.errors import InputError
from moesim.record import memory
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.chosen import predictors_by_name
from moesim.record.prompts import Prompt
from moesim.record.weights import weights_sha256
from moesim.trace import DECODE, Trace
from tests.record.families import VOCABULARY, build

PROMPTS = [[5, 17, 8, 9], [3, 4], [40, 41, 42], [7, 7, 8], [60, 61, 62, 63, 64]]


@pytest.fixture(scope="module")
def model() -> Any:
    return build("qwen3-moe")


def arrays_equal(one: Trace, other: Trace) -> None:
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)


def test_the_package_is_the_function(model: Any, tmp_path: Path) -> None:
    trace = moesim.record(model, PROMPTS, max_new_tokens=4, batch=2)
    trace.validate()
    assert trace.tokens == sum(len(prompt) + 3 for prompt in PROMPTS)
    assert trace.metadata.moe_layers == [1, 2, 3]
    assert trace.metadata.decoding == "greedy"
    assert trace.metadata.provenance["weights_sha256"] == weights_sha256(model)
    assert [each.prompt_tokens for each in trace.metadata.requests] == [4, 2, 3, 3, 5]
    arrays_equal(moesim.record(model, PROMPTS, max_new_tokens=4, batch=2, out=tmp_path / "t.safetensors"), trace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.safetensors"]


def test_a_batch_changes_the_steps_and_nothing_else(model: Any) -> None:
    alone = moesim.record(model, PROMPTS, max_new_tokens=6, scores=True)
    together = moesim.record(model, PROMPTS, max_new_tokens=6, scores=True, batch=5)
    order = np.lexsort((together.position, together.request))
    for name in ("experts", "request", "position", "phase"):
        np.testing.assert_array_equal(together.arrays()[name][order], alone.arrays()[name])
    np.testing.assert_allclose(together.arrays()["scores"][order], alone.arrays()["scores"], atol=1e-3)
    assert len(np.unique(together.step)) == 6
    assert len(np.unique(alone.step)) == 5 * 6


def test_a_continuation_is_fed_as_the_models_own_words(model: Any) -> None:
    chosen = moesim.record(model, PROMPTS[:1], max_new_tokens=5)
    with torch.no_grad():
        own = model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=4, pad_token_id=0)[0].tolist()
    forced = moesim.record(model, [Prompt(tokens=own, prompt_tokens=4, kind="story")], max_new_tokens=0)
    arrays_equal(forced, chosen)
    assert forced.metadata.decoding == "teacher-forced"
    assert forced.metadata.requests[0].kind == "story"


def test_draws_follow_the_seed(model: Any) -> None:
    def drawn(seed: int, temperature: float = 1.0) -> Any:
        return moesim.record(model, PROMPTS, max_new_tokens=12, temperature=temperature, seed=seed).experts

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(1) != drawn(2)).any()
    greedy = moesim.record(model, PROMPTS, max_new_tokens=12)
    np.testing.assert_array_equal(drawn(1, temperature=1e-4), greedy.experts)
    assert moesim.record(model, PROMPTS, temperature=1.0, max_new_tokens=3).metadata.decoding == "sampled"


def test_the_end_token_ends_its_request_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        own = [
            model.generate(torch.tensor([each]), do_sample=False, max_new_tokens=8, pad_token_id=0)[0, len(each) :]
            for each in PROMPTS
        ]
    end = int(own[0][3])
    # A request computes what it chose before the end token; the last of eight tokens is computed by nobody.
    expected = [next((at for at, token in enumerate(each.tolist()[:7]) if token == end), 7) for each in own]
    assert expected[0] <= 3 < 7 in expected
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    trace = moesim.record(model, PROMPTS, max_new_tokens=8, batch=5)
    decoded = [int((trace.request[trace.phase == DECODE] == number).sum()) for number in range(5)]
    assert decoded == expected
    unended = moesim.record(model, PROMPTS, max_new_tokens=8, batch=5, ignore_end=True)
    assert (unended.phase == DECODE).sum() == 5 * 7


def test_predictors_are_recorded_beside(model: Any) -> None:
    layers = find_moe_layers(model)
    wanted = predictors_by_name(["residual", "residual-2-ahead", "router-input"], layers, [])
    trace = moesim.record(model, PROMPTS, max_new_tokens=4, predictors=wanted, ranked=99)
    trace.validate()
    assert list(trace.predicted) == ["residual", "residual-2-ahead", "router-input"]
    assert trace.predicted["residual"].ranking.shape[-1] == trace.n_experts
    assert (trace.predicted["residual-2-ahead"].ranking[:, :2] == trace.absent).all()
    assert (trace.predicted["residual-2-ahead"].ranking[:, 2] != trace.absent).all()
    arrays = moesim.record(model, PROMPTS, max_new_tokens=4).arrays()
    for name, array in arrays.items():
        np.testing.assert_array_equal(trace.arrays()[name], array)


class CutError(Exception):
    pass


def cut_after(passes: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == passes:
            raise CutError

    return progress


@pytest.mark.parametrize("passes", [1, 4, 6, 13])
def test_a_recording_that_was_cut_off_is_continued(model: Any, tmp_path: Path, passes: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "batch": 2, "temperature": 0.8, "seed": 3}
    whole = moesim.record(model, PROMPTS, **options)
    out = tmp_path / "t.safetensors"
    with pytest.raises(CutError):
        moesim.record(model, PROMPTS, **options, out=out, progress=cut_after(passes))
    assert not out.exists()
    # What a process leaves that is killed while it writes: rows and half a line that nothing vouches for.
    folder = tmp_path / ".t.safetensors.recording"
    for path in folder.glob("*.rows"):
        path.write_bytes(path.read_bytes() + b"\x07" * 11)
    journal = folder / "journal.jsonl"
    finished = journal.read_text().count("\n") - 1
    assert finished == (passes - 1) // 5
    journal.write_text(journal.read_text() + '{"rows": 9')
    done: list[int] = []
    again = moesim.record(model, PROMPTS, **options, out=out, progress=lambda at, total: done.append(at))
    arrays_equal(again, whole)
    assert done[0] == 5 * finished
    assert again.metadata.requests == whole.metadata.requests
    assert not folder.exists()


def test_another_recording_is_not_continued(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    with pytest.raises(CutError):
        moesim.record(model, PROMPTS, out=out, progress=cut_after(2), max_new_tokens=3)
    with pytest.raises(InputError, match="begun with max_new_tokens = 3, not 4: remove it"):
        moesim.record(model, PROMPTS, out=out, max_new_tokens=4)
    with pytest.raises(InputError, match="begun with prompts_sha256"):
        moesim.record(model, PROMPTS[:2], out=out, max_new_tokens=3)
    assert json.loads((tmp_path / ".t.safetensors.recording" / "journal.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ([[]], {}, "prompt 0: 0 prompt tokens of 0"),
        ([[5], [VOCABULARY]], {}, f"prompt 1: token id {VOCABULARY}: the model's vocabulary has {VOCABULARY}"),
        ([[5] * 100], {"max_new_tokens": 30}, "100 tokens and 30 new ones, the last not run: the model's context is"),
        ([[5]], {"batch": 0}, "batch = 0: it is at least 1"),
        ([[5]], {"temperature": -1.0}, "temperature = -1.0: it is at least 0"),
        ([3.5], {}, "prompt 0: a float is neither text nor token ids"),
        ([[5]], {"out": "nowhere/t.safetensors"}, "nowhere/.t.safetensors.recording: cannot be written: No such file"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_one_line(model: Any, prompts: Any, options: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        moesim.record(model, prompts, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_too_little_memory_is_said_before_the_first_pass(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"recording needs KV cache .* for 12 tokens.*0\.0 MB are free on cpu"):
        moesim.record(model, [[5, 6]], max_new_tokens=11)


def test_the_cache_is_as_large_as_the_memory_check_says(model: Any) -> None:
    config = model.config
    keys_and_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert memory.cache_bytes_per_token(model) == keys_and_values


def test_a_model_without_routed_experts_and_a_router_of_unknown_kind_are_refused() -> None:
    model = build("olmoe")
    router = model.model.layers[0].mlp.gate
    own = router.forward
    router.forward = lambda hidden: (own(hidden)[2], *own(hidden)[1:])  # ids in place of the logits
    with pytest.raises(InputError) as error:
        moesim.record(model, PROMPTS)
    assert str(error.value) == (
        "router OlmoeTopKRouter is of unknown kind: it returns int64[64, 3], float32[64, 3], int64[64, 3], "
        "not chosen ids beside their weights"
    )
    dense = build("qwen3-moe")
    for layer in dense.model.layers[1:]:
        layer.mlp = dense.model.layers[0].mlp
    with pytest.raises(InputError, match="Qwen3MoeForCausalLM has no routed experts"):
        moesim.record(dense, PROMPTS)


def test_moesim_imports_no_torch(model: Any) -> None:
    code = "import sys, moesim; moesim.record; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_in_training_stays_in_training(model: Any) -> None:
    model.train()
    try:
        first = moesim.record(model, PROMPTS[:1], max_new_tokens=3)
        assert model.training
    finally:
        model.eval()
    arrays_equal(moesim.record(model, PROMPTS[:1], max_new_tokens=3), first)


def test_an_encoder_decoder_is_recorded_and_foreseen_by_nobody() -> None:
    model = build("switch")
    trace = moesim.record(model, PROMPTS, max_new_tokens=4, batch=3, ignore_end=True)
    trace.validate()
    # Prompts through the encoder, a start token and three of four chosen ones through the decoder.
    assert trace.tokens == sum(len(prompt) + 4 for prompt in PROMPTS)
    predictors = predictors_by_name(["residual"], find_moe_layers(model), [])
    with pytest.raises(InputError, match="predictor 'residual': encoder and decoder are two stacks"):
        moesim.record(model, PROMPTS, predictors=predictors)


def test_without_the_extra_the_package_says_what_it_needs() -> None:
    code = (
        "import sys, moesim; sys.modules['torch'] = None\n"
        "try: moesim.record(None, [])\n"
        "except moesim.errors.InputError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "moesim.record needs torch: install moesim[record]\n"
