"""Some thousand spoiled files, and what must never be in the package: pickle, eval, unsafe YAML."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moesim.config import Sweep
from moesim.errors import ConfigError, TraceError
from moesim.policies.composition import parse
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.fuzz.targets import TARGETS, feed
from tests.trace.examples import example

ROOT = Path(__file__).parents[2]
SOURCES = sorted(each for folder in ("moesim", "hw_validate") for each in (ROOT / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def test_spoiled_files_are_taken_or_refused_in_one_line():
    """In a process of its own, since it limits its memory: a header that claims a petabyte must allocate nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--cases", "1200"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:-1]] == list(TARGETS)


def test_a_run_refuses_a_trace_whose_values_break_the_format(tmp_path):
    """Replayed, expert 200 of 8 would be some other layer's."""
    trace = example()
    wrong = trace.experts.copy()
    wrong[3, 1, 0] = 200
    path = tmp_path / "wrong.safetensors"
    replace(trace, experts=wrong).save(path)
    config = RunConfig(trace=path, model="olmoe-1b-7b", hardware="rtx-a6000", policy="lru", cache_fraction=0.25)
    with pytest.raises(TraceError, match=r"experts\[3, 1, 0\] = 200: expert ids are below 8"):
        simulate(config)


@pytest.mark.parametrize("value", ["*missing", "'", "2020-13-45", "!!python/name:os.system"])
def test_a_parameter_that_is_no_plain_value_is_refused(value):
    with pytest.raises(ConfigError, match=r"key=.*: no plain value"):
        parse(f"least-stale[key={value}]")


def test_lists_that_multiply_to_too_many_runs_are_refused(tmp_path):
    numbers = ", ".join(map(str, range(1, 200)))
    (tmp_path / "a.safetensors").touch()
    path = tmp_path / "many.yaml"
    path.write_text(
        "name: many\ntrace: a.safetensors\nmodel: olmoe-1b-7b\nhardware: rtx-a6000\ngrids:\n  all:\n    policy: lru\n"
        f"    context_tokens: [{numbers}]\n    warmup_tokens: [{numbers}]\n    measured_tokens: [{numbers}]\n"
    )
    with pytest.raises(ConfigError, match=r"many\.yaml:6: grids\.all: 7,880,599 runs: a grid has at most 1,000,000"):
        Sweep.load(path)


def test_what_is_neither_taken_nor_refused_fails(tmp_path):
    def breaks(path):
        raise KeyError(path.name)

    with pytest.raises(KeyError):
        feed(replace(TARGETS["csv"], use=breaks), b"", tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_files_are_taken_before_they_are_spoiled(name, tmp_path):
    assert all(feed(TARGETS[name], data, tmp_path) for data in TARGETS[name].bases)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS
        elif isinstance(node, ast.Call):
            _check_call(node)


def _check_call(call):
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    assert not (isinstance(call.func, ast.Name) and call.func.id in ("eval", "exec", "__import__"))
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        owner, name = call.func.value.id, call.func.attr
        if (owner, name) in (("np", "load"), ("numpy", "load"), ("torch", "load")):
            allowed = given.get("allow_pickle" if owner != "torch" else "weights_only")
            assert isinstance(allowed, ast.Constant), f"line {call.lineno}: {owner}.load may unpickle"
            assert allowed.value is (owner == "torch"), f"line {call.lineno}: {owner}.load unpickles"
        if owner == "yaml" and name in ("load", "load_all", "compose"):
            loader = given.get("Loader", call.args[1] if len(call.args) > 1 else None)
            assert loader is not None, f"line {call.lineno}: yaml.{name} without a loader"
            assert ast.unparse(loader) in ("_Loader", "yaml.SafeLoader"), f"line {call.lineno}: {ast.unparse(loader)}"
        assert not (owner == "yaml" and name in ("unsafe_load", "full_load", "unsafe_load_all", "full_load_all"))
    for name in ("allow_pickle", "trust_remote_code"):
        if name in given:
            assert getattr(given[name], "value", None) is False, f"line {call.lineno}: {name}"


def test_the_loader_of_configurations_is_a_safe_one():
    import yaml

    from moesim.yaml_file import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
