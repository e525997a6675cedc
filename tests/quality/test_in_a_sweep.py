"""A quality file beside a trace travels with the sweep into its report."""

import json
from dataclasses import replace

import pytest

from moesim.config import Sweep
from moesim.errors import InputError
from moesim.quality.stored import as_json
from moesim.report import write_report
from moesim.report.figures.pareto import draw
from moesim.report.findings import headline
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


@pytest.mark.parametrize(("resident", "said"), [((0.004, 0.0, 0.009), True), ((0.004, 0.0, 0.011), False)])
def test_the_headline_names_a_choice_that_costs_clearly_less(tmp_path, resident, said):
    """Clearly: the intervals, of which speculation's is 1 to 3 per cent, are apart."""
    config, path = prepared(tmp_path)
    config.write_text(config.read_text().replace("[lru, ", "[lru, resident-execute, ").replace("[50%, 75%]", "50%"))
    path.write_text(as_json(quality(
        measured("speculate-and-execute", predictor="residual+default-vectors", increase=(0.02, 0.01, 0.03)),
        measured("resident-execute", predictor="residual+default-vectors", cache=0.5, increase=resident),
    )))
    results = swept(config, tmp_path / "out")
    lossy = {row["policy"]: row["tpot_mean_ns"] for row in results.rows if not row["lossless"]}
    assert lossy["speculate-and-execute"] <= lossy["resident-execute"]
    sentences = [each for each in headline(results) if "costs clearly less" in each]
    assert [("resident execute at 50 %" in each and "at +0.40 %" in each) for each in sentences] == [True] * said


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


SPECULATION = {"predictor": "residual+default-vectors", "increase": (0.02, 0.01, 0.03)}


def of_another(folder, text=SWEEP, **shape):
    """A sweep that names the quality of another model of the trace's shape, or of `shape`."""
    config = write_sweep(folder, text, tokens=20)
    path = folder / "tiny.safetensors"
    trace = Trace.load(path)
    told = trace.metadata.model_copy(update={"provenance": {"weights_sha256": "a" * 64}})
    replace(trace, metadata=told).save(path)
    same = {"layers": told.layers, "experts": told.experts, "top_k": told.top_k}
    other = quality(measured("speculate-and-execute", **SPECULATION), weights="b" * 64)
    (folder / "other.json").write_text(as_json(other.model_copy(update=same | shape)))
    config.write_text(config.read_text().replace("grids:", f"quality: {{{told.name}: other.json}}\ngrids:"))
    return config


def test_the_cost_of_another_model_says_whose_it_is(tmp_path):
    results = swept(of_another(tmp_path), tmp_path / "out")
    assert {results.cost(row).value for row in results.rows if not row["lossless"]} == {0.02}
    page = write_report(tmp_path / "out").read_text()
    assert "+2.0 % (+1.0 % to +3.0 %), of another model" in page
    assert "of another model of this shape than the trace&#39;s" in page
    assert "perplexity (of another model of this shape)" in page


def test_a_trace_that_does_not_say_whose_it_is_is_taken_for_anothers(tmp_path):
    config = of_another(tmp_path)
    path = tmp_path / "tiny.safetensors"
    trace = Trace.load(path)
    replace(trace, metadata=trace.metadata.model_copy(update={"provenance": {}})).save(path)
    swept(config, tmp_path / "out")
    assert "of another model" in write_report(tmp_path / "out").read_text()


def test_the_figure_says_whose_costs_it_shows(tmp_path):
    results = swept(of_another(tmp_path), tmp_path / "out")
    label = "increase of perplexity, %, of another model of this shape"
    assert draw(results).axes[0].get_ylabel() == label
    own = replace(results, quality_of_another_model=frozenset())
    assert draw(own).axes[0].get_ylabel() == "increase of perplexity, %"


def test_the_cost_of_the_model_itself_does_not(tmp_path):
    config = of_another(tmp_path, weights_sha256="a" * 64)
    swept(config, tmp_path / "out")
    assert "another model" not in write_report(tmp_path / "out").read_text()


@pytest.mark.parametrize(("shape", "rule"), [
    ({"experts": 64}, "experts = 64"), ({"layers": 9}, "layers = 9"), ({"top_k": 1}, "top_k = 1"),
])
def test_a_model_of_another_shape_does_not_stand_in(tmp_path, shape, rule):
    with pytest.raises(InputError, match=rf"other\.json: measured on a model with {rule}"):
        swept(of_another(tmp_path, **shape), tmp_path / "out")
    assert not (tmp_path / "out" / "finished.jsonl").exists()


def test_a_quality_for_a_trace_that_no_run_replays_is_named_with_its_line(tmp_path):
    config = of_another(tmp_path)
    config.write_text(config.read_text().replace("quality: {", "quality: {misspelt: other.json, "))
    with pytest.raises(InputError, match=r":7: quality\.misspelt: no run of this sweep replays"):
        swept(config, tmp_path / "out")
