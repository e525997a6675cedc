"""`hw_validate run --device cpu` from the command to the report, and what happens when it is run again."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from typer.testing import CliRunner

from hw_validate.cli import app, load_validation, main
from hw_validate.driver import DoesNotFitError, HardwareError
from hw_validate.grid import config_path
from hw_validate.storage import Slots
from tests.hw_validate.cells_on_devices import write_model

STEPS = {"warmup_steps": 1, "measured_steps": 3, "instrumented_steps": 1}
SHAPE = {"layers": 2, "experts": 8, "top_k": 2, "hidden": 64, "expert_intermediate": 32, "head_size": 16}
CELLS = 5


def write_validation(folder: Path, measured_steps=3) -> Path:
    if not (folder / "tiny-fp32.yaml").exists():
        write_model(folder, precision="fp32", **SHAPE)
    steps = STEPS | {"measured_steps": measured_steps}
    path = folder / "validation.yaml"
    path.write_text(yaml.safe_dump({
        "name": "tiny", "title": "A made-up model", "hardware": "cpu", "context_tokens": 8,
        "models": [{"model": "tiny-fp32.yaml", "synthetic": {"overlap": 0.4, "busiest": 0.2, "recall": 0.9}}],
        "groups": [
            {"policies": ["lru", "speculate-and-execute"], "cache": ["50%"], **STEPS},
            {"policies": ["on-demand"], "cache": ["0%"], **steps},
            {"policies": ["lru"], "cache": ["50%"], "batch": [2], **STEPS},
            {"policies": ["on-demand"], "cache": ["0%"], "phase": "prefill", **STEPS},
        ],
        "timelines": ["tiny-fp32.on-demand.0.decode.batch1"],
    }))
    return path


def validate(folder: Path, out: Path):
    return CliRunner().invoke(app, ["run", str(folder / "validation.yaml"), "--device", "cpu", "--out", str(out)])


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    write_validation(folder)
    done = validate(folder, folder / "out")
    assert done.exit_code == 0, done.output
    return folder, done


@pytest.fixture
def copy(validated, tmp_path):
    """The finished validation, to be changed."""
    return shutil.copytree(validated[0], tmp_path / "again")


def measured(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "measured").iterdir()}


def test_everything_is_measured_simulated_compared_and_reported(validated):
    folder, done = validated
    out = folder / "out"
    rows = parquet.read_table(out / "comparison.parquet").to_pylist()
    assert len(rows) == CELLS
    for row in rows:
        assert row["tpot_measured_ns"] > 0
        assert row["tpot_simulated_ns"] > 0
        assert row["hits_measured"] == row["hits_simulated"]
        assert row["bytes_measured"] == row["bytes_simulated"] > 0
    for path in (out / "cells").iterdir():
        cell = json.loads(path.read_bytes())
        assert cell["executed"] > 0
        assert (cell["executed_differently"], cell["decisions_different"]) == (0, 0)
    assert {"report.html", "timeline.perfetto.json", "machine.json", "cpu.yaml"} <= {p.name for p in out.iterdir()}
    assert done.stdout.strip() == str(out / "report.html")


def test_a_cell_that_does_not_fit_is_told_and_the_others_are_measured(copy, monkeypatch):
    for path in (copy / "out" / "measured").iterdir():
        path.unlink()
    whole = Slots.__init__

    def small(self, slots, host, device):
        """Memory for less than a half of the experts."""
        if slots >= SHAPE["layers"] * SHAPE["experts"] // 2:
            raise DoesNotFitError(f"{slots} slots: 7 would fit")
        whole(self, slots, host, device)

    monkeypatch.setattr(Slots, "__init__", small)
    done = validate(copy, copy / "out")
    assert done.exit_code == 0, done.output
    refused = {"lru.0.5.decode.batch1": 8, "lru.0.5.decode.batch2": 8, "on-demand.0.prefill.batch1": 16}
    for cell, slots in refused.items():
        assert f"not measured: tiny-fp32.{cell}: {slots} slots: 7 would fit" in done.stderr
    rows = parquet.read_table(copy / "out" / "comparison.parquet").to_pylist()
    assert [(row["policy"], row["phase"]) for row in rows] == [("on-demand", "decode")]
    assert len(measured(copy / "out")) == 1


def test_any_other_failure_of_a_device_ends_the_model_and_not_one_cell(copy, monkeypatch):
    for path in (copy / "out" / "measured").iterdir():
        path.unlink()
    failing = iter([False])

    def fail(*_):
        if next(failing, True):
            raise HardwareError("CUDA error 700")

    monkeypatch.setattr(Slots, "__init__", lambda *given, whole=Slots.__init__: (fail(), whole(*given))[1])
    done = validate(copy, copy / "out")
    assert done.exit_code == 0, done.output
    assert "not measured: tiny-fp32: CUDA error 700" in done.stderr
    assert len(measured(copy / "out")) == 1


def test_where_nothing_fits_the_reasons_are_told(copy, monkeypatch):
    for folder in ("measured", "cells"):
        for path in (copy / "out" / folder).iterdir():
            path.unlink()

    def nothing(*_):
        raise DoesNotFitError("16 slots: 0 would fit")

    monkeypatch.setattr(Slots, "__init__", nothing)
    done = validate(copy, copy / "out")
    assert done.stderr.count("0 would fit") == CELLS
    assert "no measured cell" in str(done.exception)


def test_another_card_lends_its_name_and_its_data_sheet():
    path = config_path("h200-quick")
    assert load_validation(path, "cuda", None).hardware == "h200"
    assert load_validation(path, "cuda", "rtx-4090").hardware == "rtx-4090"


def test_an_unknown_card_or_one_for_the_processor_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = ["run", "--quick", "--device", "cpu", "--hardware"]
    assert "unknown hardware 'rtx-409'" in refused([*command, "rtx-409"], capsys, monkeypatch)
    assert "--hardware rtx-4090: names a card" in refused([*command, "rtx-4090"], capsys, monkeypatch)
    assert not list(tmp_path.iterdir())


def test_what_was_measured_is_compared_anywhere_and_later(copy):
    out = copy / "out"
    before = (out / "comparison.parquet").read_bytes()
    for path in [*(out / "cells").iterdir(), out / "comparison.parquet", out / "report.html"]:
        path.unlink()
    times = measured(out)
    done = CliRunner().invoke(app, ["compare", str(copy / "validation.yaml"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "comparison.parquet").read_bytes() == before
    assert done.stdout.strip() == str(out / "report.html")
    assert measured(out) == times


@pytest.mark.parametrize(("was", "now"), [
    ("context_tokens: 8", "context_tokens: 16"), ("measured_steps: 3", "measured_steps: 2"),
    ("- model: tiny", "- layers: 1\n  model: tiny"),
])
def test_what_was_measured_under_another_plan_is_not_compared(copy, capsys, monkeypatch, was, now):
    before = {path.name: path.read_bytes() for path in (copy / "out" / "cells").iterdir()}
    validation = copy / "validation.yaml"
    assert was in validation.read_text()
    validation.write_text(validation.read_text().replace(was, now))
    line = refused(["compare", validation, "--out", copy / "out"], capsys, monkeypatch)
    assert "measured under another plan (context, steps, layers or trace): measure again" in line
    assert {path.name: path.read_bytes() for path in (copy / "out" / "cells").iterdir()} == before


def test_before_anything_was_measured_there_is_nothing_to_compare(copy, capsys, monkeypatch):
    (copy / "out" / "cpu.yaml").unlink()
    line = refused(["compare", copy / "validation.yaml", "--out", copy / "out"], capsys, monkeypatch)
    assert "cpu.yaml: missing" in line
    line = refused(["compare", copy / "validation.yaml", "--out", copy / "nowhere"], capsys, monkeypatch)
    assert "nowhere/machine.json" in line


def test_what_was_measured_is_not_measured_again(copy):
    before = measured(copy / "out")
    missing = "tiny-fp32.lru.0.5.decode.batch2.npz"
    (copy / "out" / "measured" / missing).unlink()
    assert validate(copy, copy / "out").exit_code == 0
    after = measured(copy / "out")
    assert {name for name in after if after[name] != before.get(name)} == {missing}


def test_a_cell_of_another_plan_is_measured_again_and_one_that_left_the_plan_is_not_reported(copy):
    before = measured(copy / "out")
    write_validation(copy, measured_steps=4)
    (copy / "out" / "cells" / "of-another-plan.json").write_text("{}")
    done = validate(copy, copy / "out")
    assert done.exit_code == 0, done.output
    after = measured(copy / "out")
    again = {name for name in after if after[name] != before[name]}
    assert again == {"tiny-fp32.on-demand.0.decode.batch1.npz"}
    assert "tiny-fp32.on-demand.0.decode.batch1: measured under another plan, so again" in done.stderr
    assert len(parquet.read_table(copy / "out" / "comparison.parquet")) == CELLS


def refused(arguments, capsys, monkeypatch) -> str:
    monkeypatch.setattr("sys.argv", ["hw_validate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    told = capsys.readouterr().err
    return told.strip().splitlines()[-1]


def test_a_folder_of_another_machine_is_refused_untouched(copy, capsys, monkeypatch):
    path = copy / "out" / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor": "Z80"}))
    (copy / "out" / "measured" / "tiny-fp32.lru.0.5.decode.batch2.npz").unlink()
    before = measured(copy / "out")
    line = refused(
        ["run", copy / "validation.yaml", "--device", "cpu", "--out", copy / "out"], capsys, monkeypatch
    )
    assert "machine.json: measured with processor Z80" in line
    assert measured(copy / "out") == before


def test_a_torn_cell_is_named(copy, capsys, monkeypatch):
    path = copy / "out" / "measured" / "tiny-fp32.lru.0.5.decode.batch1.npz"
    path.write_bytes(path.read_bytes()[:200])
    line = refused(
        ["run", copy / "validation.yaml", "--device", "cpu", "--out", copy / "out"], capsys, monkeypatch
    )
    assert str(path) in line
    assert "not a whole measured cell" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["doctor", "calibrate", "run"])
def test_without_a_gpu_one_line_says_what_to_do(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = refused([command], capsys, monkeypatch)
    assert "no CUDA device here" in line
    assert "--device cpu" in line
    assert not list(tmp_path.iterdir())
