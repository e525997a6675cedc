"""A quality file beside a trace travels with the sweep into its report."""

import json

import pytest

from moesim.config import Sweep
from moesim.errors import InputError
from moesim.quality.stored import as_json
from moesim.report import write_report
from moesim.report.rows import read_results
from moesim.sweep import run_sweep
from moesim.trace import Trace
from tests.quality.made_up import measured, quality
from tests.sweeps_for_tests import write_sweep

SWEEP = """
name: tiny
trace: tiny.safetensors
model: ./tiny.yaml
hardware: rtx-a6000
warmup_tokens: 5
grids:
  policies:
    policy: [lru, speculate-and-execute]
    cache: [50%, 75%]
    context_tokens: 128
    interval: false
"""


def prepared(folder):
    config = write_sweep(folder, SWEEP, tokens=20)
    path = folder / f"{Trace.load(folder / 'tiny.safetensors').metadata.name}.quality.json"
    return config, path


def swept(config, out):
    run_sweep(Sweep.load(config), out, 1, lambda done, total: None)
    return read_results(out)


def test_costs_stand_beside_the_times(tmp_path):
    config, path = prepared(tmp_path)
    path.write_text(as_json(quality(
        measured("speculate-and-execute", predictor="residual+default-vectors", increase=(0.02, 0.01, 0.03))
    )))
    results = swept(config, tmp_path / "out")
    costs = {(row["policy"], row["cache_fraction"]): results.cost(row).value for row in results.rows}
    assert costs == {
        ("lru", 0.5): 0, ("lru", 0.75): 0, ("speculate-and-execute", 0.5): 0.02, ("speculate-and-execute", 0.75): 0.02,
    }
    assert "+2.0 % (+1.0 % to +3.0 %)" in write_report(tmp_path / "out").read_text()


def test_without_a_file_the_sweep_says_so(tmp_path):
    config, _ = prepared(tmp_path)
    results = swept(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["quality"] == {}
    assert not results.knows_costs
    assert [results.cost(row) is None for row in results.rows] == [not row["lossless"] for row in results.rows]


def test_a_torn_file_is_found_before_the_first_run(tmp_path):
    config, path = prepared(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"quality\.json"):
        swept(config, tmp_path / "out")
    assert not (tmp_path / "out" / "finished.jsonl").exists()
