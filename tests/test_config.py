"""What a sweep's file may say: the runs that it stands for, and how each mistake is named."""

from pathlib import Path

import pytest

from moesim.config import AXES, Sweep, cache_fraction
from moesim.errors import ConfigError
from moesim.yaml_file import line_of
from tests.sweeps_for_tests import RUNS, SWEEP, write_sweep

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def tiny(tmp_path):
    return Sweep.load(write_sweep(tmp_path))


def test_a_grid_is_the_product_of_its_lists_in_the_order_written(tiny):
    assert len(tiny.runs) == RUNS
    assert [(run.policy, run.cache_fraction) for run in tiny.runs[:5]] == [
        ("on-demand", 0.0), ("lru", 0.0), ("lru", 0.5), ("lru", 0.75), ("lfu", 0.0),
    ]
    links = [run for run in tiny.runs if run.grid == "links"]
    assert [(run.policy, run.cache_fraction, run.hardware_overrides["link_bytes_per_s"]) for run in links[:4]] == [
        ("lru", 0.1, 6e9), ("lru", 0.1, 25e9), ("lru", 0.1, 54.9e9), ("lru", 0.6, 6e9),
    ]
    assert {run.context_tokens for run in links} == {None}
    assert {run.interval for run in links} == {False}
    assert {run.warmup_tokens for run in tiny.runs} == {10}


def test_an_axis_of_the_grid_replaces_the_one_above_and_takes_its_own_place(tmp_path):
    text = SWEEP.replace("warmup_tokens: 10", "warmup_tokens: 10\ncache: [0%, 50%]\ncontext_tokens: 7").replace(
        "cache: [10%, 60%]", "warmup_tokens: [1, 2]\n    per_layer: [true, false]"
    )
    links = [run for run in Sweep.load(write_sweep(tmp_path, text)).runs if run.grid == "links"]
    assert {run.cache_fraction for run in links} == {0.0, 0.5}
    assert {run.warmup_tokens for run in links} == {1, 2}
    assert {run.context_tokens for run in links} == {7}
    # Nothing is to be split where nothing is kept: 0 % stands once, 50 % twice.
    assert len(links) == 2 * 3 * 2 * (1 + 2)
    # What is only said above is the outer loop; then the grid's own axes in their order.
    assert [run.policy for run in links[:18]] == ["lru"] * 6 + ["prefetch-and-refetch"] * 6 + ["lru"] * 6


def test_the_share_of_host_memory_is_an_axis_and_never_nothing(tmp_path):
    text = SWEEP.replace("warmup_tokens: 10", "warmup_tokens: 10\nhost_cache: 12.5%")
    runs = Sweep.load(write_sweep(tmp_path, text)).runs
    assert [run.host_cache_fraction for run in runs] == [0.125] * RUNS
    assert {run.host_cache_fraction for run in Sweep.load(write_sweep(tmp_path)).runs} == {1.0}
    with pytest.raises(ConfigError, match="host_cache = 0: expected more than 0%"):
        Sweep.load(write_sweep(tmp_path, SWEEP.replace("warmup_tokens: 10", "warmup_tokens: 10\nhost_cache: 0")))


def test_fixed_caches_are_fixed_whatever_the_grid_says(tiny):
    assert [run.cache_fraction for run in tiny.runs if run.policy == "on-demand"] == [0.0]
    assert [run.cache_fraction for run in tiny.runs if run.policy == "all-resident"] == [1.0]


def test_paths_are_relative_to_the_file(tiny, tmp_path):
    assert {run.trace for run in tiny.runs} == {tmp_path / "tiny.safetensors"}
    assert {run.model for run in tiny.runs} == {str(tmp_path / "tiny.yaml")}
    assert {run.hardware for run in tiny.runs} == {"rtx-a6000"}


def test_a_timeline_takes_what_it_does_not_say_from_above(tiny):
    (excerpt,) = tiny.timelines
    assert (excerpt.run.policy, excerpt.run.cache_fraction, excerpt.run.warmup_tokens) == ("lru", 0.5, 10)
    assert excerpt.run.interval is False
    assert excerpt.layers == (1, 2)


@pytest.mark.parametrize(("text", "fraction"), [
    ("25%", 0.25), ("0.25", 0.25), (0.25, 0.25), ("12.3%", 0.123), ("0%", 0.0), (0, 0.0), ("100 %", 1.0),
    ("5e-2", 0.05),
])
def test_shares(text, fraction):
    assert cache_fraction(text) == fraction


@pytest.mark.parametrize("text", ["-1%", "101%", "1.5", "nan", "inf%", "", "%", "a quarter", None, [0.5], True])
def test_shares_that_are_none(text):
    with pytest.raises(ConfigError, match="expected"):
        cache_fraction(text)


def test_the_shipped_sweep_covers_what_it_promises():
    sweep = Sweep.load(CONFIGS / "a6000.yaml")
    grids = {grid: [run for run in sweep.runs if run.grid == grid] for grid in sweep.config.grids}
    # Ten policies at five sizes, of which on-demand has no cache and all-resident every expert.
    assert len({run.policy for run in grids["policies"]}) == 10
    assert {run.cache_fraction for run in grids["policies"]} == {0, 0.05, 0.125, 0.25, 0.5, 1}
    assert len(grids["policies"]) == 8 * 5 + 2
    assert {run.context_tokens for run in grids["contexts"]} == {1024, 4096, 16384, 65536}
    assert len(grids["contexts"]) == 2 * 4
    assert len({run.hardware_overrides["link_bytes_per_s"] for run in grids["bandwidth"]}) == 6
    assert len(grids["bandwidth"]) == 6 * 4 * 5
    assert {(run.warmup_tokens, run.measured_tokens) for run in sweep.runs} == {(64, 128)}
    assert {Path(run.trace).name for run in sweep.runs} == {"reference-48x128.safetensors"}


def test_the_example_of_the_documentation_is_one(tmp_path):
    page = (CONFIGS.parent / "docs" / "sweeps.md").read_text()
    example = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "x.yaml").write_text(example.replace("../traces", str(CONFIGS.parent / "traces")))
    assert len(Sweep.load(tmp_path / "x.yaml").runs) == 2 * 2 + 2 * 3
    assert all(f"`{axis}`" in page for axis in AXES)


MISTAKES = [  # (what is replaced in the small sweep, by what, and what the message says)
    ("warmup_tokens", "warm_tokens", ":7: unknown key 'warm_tokens': did you mean warmup_tokens"),
    ("title: A tiny sweep", "name: again", ":3: not valid YAML: name is given twice"),
    ("name: tiny\n", "", "name is missing"),
    ("name: tiny", "name: ../tiny", ":2: name = '../tiny'"),
    ("context_tokens: 128", "contex: 128", ":12: grids.policies.contex: unknown key: did you mean"),
    (
        "hardware.link_bytes_per_s", "hardware.link_bytes",
        ":16: grids.links.hardware.link_bytes: unknown figure of the hardware: did you mean link_bytes_per_s",
    ),
    ("lfu", "lfru", ":10: grids.policies.policy = lfru: unknown policy 'lfru': did you mean"),
    ("key=cyclic", "kye=cyclic", "unknown parameter 'kye': did you mean key?"),
    ("    policy: [lru, prefetch-and-refetch]\n", "", ":13: grids.links: policy is missing"),
    ("hardware: rtx-a6000\n", "", ":8: grids.policies: hardware is missing, here and above"),
    ("75%", "175%", ":11: grids.policies.cache = 175%: expected 0% to 100%"),
    ("75%", "much", ":11: grids.policies.cache = much: expected a share such as 25%"),
    ("[10%, 60%]", "[]", ":15: grids.links.cache: the list is empty"),
    ("128", "0", ":12: grids.policies.context_tokens = 0: expected a whole number, 1 or more"),
    ("128", "1.5", ":12: grids.policies.context_tokens = 1.5: expected a whole number"),
    ("tokens: 10", "tokens: -1", ":7: warmup_tokens = -1: expected a whole number, 0 or more"),
    ("tokens: 10", "tokens:", ":7: warmup_tokens = None: expected a whole number, 0 or more"),
    ("128", "9999999999", ":12: grids.policies.context_tokens = 9999999999: expected a whole number, at most 1,0"),
    ("interval: false", "interval: maybe", ":17: grids.links.interval = maybe: expected true or false"),
    ("25e9", "fast", ":16: grids.links.hardware.link_bytes_per_s = fast: expected a number"),
    ("trace: tiny", "trace: my", ":4: trace = my.safetensors: no such file"),
    ("./tiny.yaml", "tyni", ":5: model = tyni: unknown model 'tyni'"),
    ("./tiny.yaml", "./tyni.yaml", "tyni.yaml: no such file"),
    ("rtx-a6000", "rtx-a600", ":6: hardware = rtx-a600: unknown hardware 'rtx-a600': did you mean"),
    ("warmup_tokens: 10", "engine: yali", ":7: engine = yali: unknown engine 'yali': did you mean"),
    ("policies:\n", "policies: [1]\n  x:\n", ":9: grids.policies"),
    ("{grid: policies", "{grid: police", ":19: published.0.grid = police: unknown grid"),
    ("lru, cache: 50%, t", "lur, cache: 50%, t", ":19: published.0.policy = lur"),
    ("source: made", "sauce: made", ":19: unknown key 'published.0.sauce': did you mean source?"),
    ("[1, 2]", "[2, 1]", ":21: timelines.0.layers = [2, 1]: expected [FIRST, LAST]"),
    ("cache: 50%, layers", "cache: [0%, 50%], layers", ":21: timelines.0: 2 runs"),
    (SWEEP, "name: [", "not valid YAML"),
    (SWEEP, "- name", "expected a mapping"),
    (SWEEP, "", "expected a mapping"),
]


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES)
def test_every_mistake_is_one_line_that_names_file_line_value_and_rule(tmp_path, old, new, expected):
    assert old in SWEEP
    path = write_sweep(tmp_path, SWEEP.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        Sweep.load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_lines_are_found_as_deep_as_the_way_exists(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb:\n  c:\n    - x\n    - y\n")
    assert line_of(path, "b", "c", 1) == ":5"
    assert line_of(path, "b", "d") == ":2"
    assert line_of(path, "z") == ""
    assert line_of(tmp_path / "none.yaml", "a") == ""
