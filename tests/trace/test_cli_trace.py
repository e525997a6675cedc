"""`moesim trace` as people call it: what it prints, what it writes and how it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.cli_trace import app
from moesim.errors import InputError
from moesim.trace import Trace
from tests.trace.examples import assert_equal, changed, example


def run(*arguments):
    """Standard output; an InputError goes on to the caller, as it does to the `moesim` command."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def saved(tmp_path):
    trace = example(tokens=30, experts=16, predictors={"residual": (1, 4, False)})
    trace.save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_info_shows_shape_requests_predictors_and_statistics(saved):
    text = run("info", saved)
    for part in ("example", "3 MoE layers (0 to 2), 16 experts each, top-2", "30 of 2 requests", "kind-0", "kind-1",
                 "residual", "overlap with the previous token", "busiest tenth", "CC0-1.0", "this test", "30 x 3 x 2"):
        assert part in text
    assert "synthetic" not in text
    assert "\x1b" not in text  # colours are for terminals


def test_info_as_json(saved):
    found = json.loads(run("info", "--json", saved))
    trace = Trace.load(saved)
    assert found["tokens"] == 30
    assert (found["prefill_tokens"], found["decode_tokens"]) == (4, 26)
    assert found["steps"] == 28
    assert found["kinds"] == {"kind-0": {"requests": 1, "tokens": 15}, "kind-1": {"requests": 1, "tokens": 15}}
    assert found["file_bytes"] == saved.stat().st_size
    assert found["arrays"]["experts"] == {"type": "uint8", "shape": [30, 3, 2], "bytes": 180}
    assert found["predictors"]["residual"]["layer_offset"] == 1
    assert found["predictors"]["residual"]["ranked"] == 4
    assert found["predictors"]["residual"]["recall_at_top_k_by_layer"][0] is None
    hits = np.mean([
        len(set(trace.experts[t, 1].tolist()) & set(trace.predicted["residual"].ranking[t, 1, :2].tolist())) / 2
        for t in range(30)
    ])
    assert found["predictors"]["residual"]["recall_at_top_k_by_layer"][1] == pytest.approx(hits)
    assert found["statistics"]["rows_read"] == 30


def test_info_without_statistics(saved):
    assert json.loads(run("info", "--json", "--rows", "0", saved))["statistics"] is None
    assert "overlap" not in run("info", "--rows", "0", saved)


def test_info_leaves_dropped_tokens_out_of_the_statistics(tmp_path):
    trace = example(tokens=40, dropped=0.2)
    trace.save(tmp_path / "a.safetensors")
    found = json.loads(run("info", "--json", tmp_path / "a.safetensors"))["statistics"]
    assert found["rows_counted"] == int((trace.experts != 255).all((1, 2)).sum()) < found["rows_read"] == 40


def test_info_of_a_trace_too_short_for_statistics(tmp_path):
    example(tokens=1, requests=1).save(tmp_path / "a.safetensors")
    assert json.loads(run("info", "--json", tmp_path / "a.safetensors"))["statistics"] is None


def test_validate_prints_the_hash_and_names_what_is_broken(saved, tmp_path):
    trace = Trace.load(saved)
    assert run("validate", saved) == f"{saved}: valid, 30 tokens, sha256 {trace.content_hash()}\n"
    changed(trace, "phase", (3,), 9).save(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors: phase\[3\] = 9: 0 is prefill, 1 is decode"):
        run("validate", saved, tmp_path / "b.safetensors")


def test_import(tmp_path):
    source, out = tmp_path / "mine.csv", tmp_path / "mine.safetensors"
    source.write_text(
        "step,request,position,phase,layer,slot,expert,weight\n0,0,0,decode,3,0,5,0.75\n0,0,0,decode,3,1,2,0.25\n"
    )
    text = run("import", source, "--out", out, "--model", "m", "--experts", "12", "--licence", "MIT", "--notes", "why")
    assert text.startswith(f"{out}: 1 tokens, 1 layers, 12 experts, top-2")
    trace = Trace.load(out)
    assert trace.experts.tolist() == [[[5, 2]]]
    assert trace.weights.tolist() == [[[0.75, 0.25]]]
    assert trace.metadata.moe_layers == [3]
    assert (trace.metadata.model, trace.metadata.licence, trace.metadata.notes) == ("m", "MIT", "why")


def test_a_refused_import_writes_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("step,request,position,phase,layer,slot,expert\n0,0,0,1,0,0,x\n")
    with pytest.raises(InputError, match=r"a\.csv: line 2: expert = 'x'"):
        run("import", tmp_path / "a.csv", "--out", tmp_path / "a.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]


def test_synth_reports_what_it_reached(tmp_path):
    out = tmp_path / "a.safetensors"
    text = run("synth", "--layers", 4, "--experts", 16, "--top-k", 2, "--overlap", 0.4, "--busiest", 0.3, "--out", out)
    trace = Trace.load(out)
    trace.validate()
    assert (trace.tokens, trace.metadata.synthetic) == (1000, True)
    assert "overlap with the previous token 0.4" in text
    assert "(asked 0.4), busiest 2 of 16 experts 0." in text
    assert "(synthetic)" in run("info", out)


@pytest.mark.parametrize(
    "arguments",
    [["--layers", "4"], ["--layers", "4", "--experts", "8"], ["--model", "olmoe-1b-7b", "--layers", "4"], []],
)
def test_synth_needs_one_whole_shape(tmp_path, arguments):
    with pytest.raises(InputError, match="--layers, --experts and --top-k"):
        run("synth", *arguments, "--overlap", 0.4, "--busiest", 0.3, "--out", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("model", "shape"),
    [("mixtral-8x7b", (32, 8, 2)), ("phi-3.5-moe", (32, 16, 2)), ("switch-base-128", (12, 128, 1))],
)
def test_synth_borrows_the_shape_of_a_model(tmp_path, model, shape):
    out = tmp_path / "a.safetensors"
    run("synth", "--model", model, "--overlap", 0.4, "--busiest", 0.3, "--out", out)
    trace = Trace.load(out)
    assert (trace.layers, trace.n_experts, trace.top_k) == shape
    assert trace.metadata.name == f"synthetic-{model}"


def test_slice_and_concat_are_inverse(saved, tmp_path):
    first, second, joined = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "joined"))
    run("slice", saved, 0, 13, "--out", first)
    run("slice", saved, 13, 30, "--out", second)
    assert Trace.load(first).metadata.provenance["sliced"] == {
        "name": "example", "sha256": Trace.load(saved).content_hash(), "rows": [0, 13],
    }
    run("concat", "--pieces", first, second, "--out", joined)
    assert_equal_but_for_provenance(Trace.load(joined), Trace.load(saved))
    run("concat", saved, saved, "--out", joined)
    assert Trace.load(joined).tokens == 60
    assert set(Trace.load(joined).request.tolist()) == {0, 1, 2, 3}


def assert_equal_but_for_provenance(one, two):
    metadata = one.metadata.model_copy(update={"provenance": two.metadata.provenance})
    assert_equal(replace(one, metadata=metadata), two)


@pytest.mark.parametrize("command", ["info", "validate", "import", "synth", "slice", "concat"])
def test_every_command_has_help_with_an_example(command):
    text = run(command, "--help")
    assert "Examples:" in text
    assert f"moesim trace {command}" in text


def test_bad_files_pass_on_one_line(tmp_path):
    (tmp_path / "a").write_bytes(b"no trace")
    for arguments in (
        ["info", tmp_path / "a"], ["validate", tmp_path / "none"], ["slice", tmp_path / "a", 0, 1, "-o", "x"],
        ["concat", tmp_path / "a", "-o", tmp_path / "b"],
    ):
        with pytest.raises(InputError) as found:
            run(*arguments)
        assert "\n" not in str(found.value)
        assert str(tmp_path) in str(found.value)
