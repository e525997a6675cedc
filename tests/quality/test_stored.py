"""The file of measured costs: which policy of a sweep finds which mode, and files that are not ours."""

import json
from pathlib import Path

import pytest

from moesim.errors import InputError
from moesim.quality.stored import as_json, beside, cost_of, load
from tests.quality.made_up import measured, quality

DEFAULT = "residual+default-vectors"
FILE = quality(
    measured("speculate-and-execute", predictor=DEFAULT, increase=(0.01, 0, 0.02),
             parameters={"first_layer": 1, "loop": "closed"}),
    measured("speculate-and-execute", predictor="residual", increase=(0.02, 0, 0.03)),
    measured("speculate-and-execute", predictor=DEFAULT, increase=(0.03, 0, 0.04), variant={"loop": "open"}),
    measured("speculate-and-execute", predictor=DEFAULT, increase=(0.04, 0, 0.05), variant={"first_layer": 4}),
    measured("drop", predictor=DEFAULT, cache=0.25, increase=(0.05, 0, 0.06), parameters={"renormalise": False}),
    measured("drop", predictor=DEFAULT, cache=0.25, increase=(0.06, 0, 0.07), variant={"renormalise": True}),
    measured("drop", predictor=DEFAULT, cache=0.5, increase=(0.07, 0, 0.08), parameters={"evict": "lru"}),
    measured("cache-prior", cache=0.5, increase=(0.08, 0, 0.09), variant={"strength": 0.5, "keep": 2}),
)


@pytest.mark.parametrize(
    ("policy", "cache", "cost"),
    [
        ("speculate-and-execute", 0.0, 0.01),
        ("speculate-and-execute", 0.5, 0.01),
        ("speculate-and-execute[evict=lfu]", 0.5, 0.01),
        (f"speculate-and-execute[predictor={DEFAULT}]", 0.5, 0.01),
        ("speculate-and-execute[predictor=residual]", 0.5, 0.02),
        ("speculate-and-execute[first_layer=4]", 0.5, 0.04),
        ("speculate-and-execute[first_layer=5]", 0.5, None),
        ("speculate-and-execute[prefill=true]", 0.5, None),
        ("drop", 0.25, 0.05),
        ("drop[renormalise=true]", 0.25, 0.06),
        ("drop", 0.125, None),
        ("drop[evict=lru]", 0.5, 0.07),
        ("drop[evict=lfu]", 0.5, None),
        ("cache-prior", 0.5, None),
        ("cache-prior[strength=0.5,keep=2]", 0.5, 0.08),
        ("resident-execute", 0.5, None),
    ],
)
def test_a_policy_finds_its_cost(policy, cache, cost):
    assert cost_of(FILE, policy, cache) == cost


def test_open_loop_is_asked_for():
    assert cost_of(FILE, "speculate-and-execute", 0.0, open_loop=True) == 0.03
    assert cost_of(FILE, "drop", 0.25, open_loop=True) is None


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.quality.json"
    path.write_text(as_json(FILE))
    assert load(path) == FILE
    assert beside(tmp_path / "any.safetensors", "a", {}) == FILE
    assert beside(tmp_path / "any.safetensors", "b", {}) is None


@pytest.mark.parametrize("provenance", [{"weights_sha256": "f" * 64}, {"training": {"weights_sha256": "f" * 64}}])
def test_the_weights_must_be_the_traces(tmp_path, provenance):
    (tmp_path / "a.quality.json").write_text(as_json(quality(weights="e" * 64)))
    with pytest.raises(InputError, match=r"weights eeeeeeeeeeee…, t\.safetensors was recorded from ffffffffffff…"):
        beside(tmp_path / "t.safetensors", "a", provenance)
    (tmp_path / "a.quality.json").write_text(as_json(quality(weights="f" * 64)))
    assert beside(tmp_path / "t.safetensors", "a", provenance) is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        (as_json(FILE).replace("moesim-quality/1", "moesim-quality/9"), "format"),
        (as_json(FILE).replace('"experts"', '"expert"'), "experts: Field required"),
    ],
)
def test_a_file_that_is_not_ours_is_one_line(tmp_path, content, message):
    path = tmp_path / "a.quality.json"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        load(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.json")


TRACES = Path(__file__).parents[2] / "traces"


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.quality.json")), ids=lambda path: path.name)
def test_the_shipped_files_are_whole_and_of_the_shipped_weights(path):
    shipped = load(path)
    true = [each for each in shipped.measured if each.mode == "true"]
    assert {each.passes for each in true} == {each.passes for each in shipped.measured}, "each is held against its own"
    assert all(each.perplexity_increase.value == each.kl_nats.value == 0 for each in true)
    name = path.name.removesuffix(".quality.json")
    model = TRACES / "models" / name / "training.json"
    if model.exists():
        assert shipped.weights_sha256 == json.loads(model.read_text())["weights_sha256"]
    dearest = cost_of(shipped, "speculate-and-execute", 0.5)
    assert dearest > 0
    if any(each.mode == "resident-execute" for each in shipped.measured):
        assert dearest > cost_of(shipped, "resident-execute", 0.5) > 0
