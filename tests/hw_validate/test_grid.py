"""A validation as it is written, and the cells and traces that it stands for."""

from pathlib import Path

import pytest
import yaml

from hw_validate.grid import Plan, Validation
from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.trace import Trace
from tests.hw_validate.cells_on_devices import write_model, write_trace
from tests.hw_validate.test_end_to_end import SHAPE


def plan(folder, groups, **model):
    name = write_model(folder, precision="fp32", **SHAPE).name
    given = {"synthetic": {"overlap": 0.4, "busiest": 0.2, "recall": 0.9}} if "trace" not in model else {}
    path = folder / "validation.yaml"
    path.write_text(yaml.safe_dump({
        "name": "tiny", "title": "t", "hardware": "cpu", "context_tokens": 8,
        "models": [{"model": name, **given, **model}], "groups": groups,
    }))
    return [planned for cells in Plan(Validation.load(path), path, folder / "out").cells.values() for planned in cells]


def write(folder, steps):
    model = ModelSpec.load(str(write_model(folder, precision="fp32", **SHAPE)))
    write_trace(folder / "recorded.safetensors", model, steps)


def test_cells_are_the_product_of_policies_batches_and_cache(tmp_path):
    found = plan(tmp_path, [{
        "policies": ["lru", "least-stale"], "cache": ["25%", "50%"], "batch": [1, 4], "warmup_steps": 1,
        "measured_steps": 4, "instrumented_steps": 1,
    }])
    cells = [(each.cell.policy, each.cell.cache_fraction, each.cell.batch_tokens) for each in found]
    assert sorted(cells) == [(p, c, b) for p in ("least-stale", "lru") for c in (0.25, 0.5) for b in (1, 4)]
    for each in found:
        trace = Trace.load(each.trace)
        assert trace.tokens == 6 * each.cell.batch_tokens
        assert each.cell.synthetic


def test_a_model_of_long_steps_runs_fewer(tmp_path):
    groups = [
        {"policies": ["lru"], "cache": ["50%"], "warmup_steps": 8, "measured_steps": 16},
        {"policies": ["lru"], "cache": ["50%"], "phase": "prefill", "warmup_steps": 1, "measured_steps": 6},
    ]
    found = plan(tmp_path, groups, most_steps={"decode": 5}, most_warmup_steps=2)
    steps = {each.cell.phase: (each.cell.warmup_steps, each.cell.measured_steps) for each in found}
    assert steps == {"decode": (2, 5), "prefill": (1, 6)}


@pytest.mark.parametrize("recorded", [True, False])
def test_of_a_model_that_is_too_large_the_first_layers_are_run(tmp_path, recorded):
    group = {"policies": ["lru"], "cache": ["50%"], "warmup_steps": 1, "measured_steps": 4, "instrumented_steps": 1}
    write(tmp_path, 6)
    given = {"trace": "recorded.safetensors"} if recorded else {}
    whole = Trace.load(plan(tmp_path, [group], **given)[0].trace)
    (cut,) = plan(tmp_path, [group], layers=1, **given)
    assert (cut.cell.layers, cut.cell.layers_of_model) == (1, 2)
    spec, trace = ModelSpec.load(cut.model), Trace.load(cut.trace)
    assert (spec.layers, trace.layers, trace.metadata.moe_layers) == (1, 1, [0])
    trace.validate()
    if recorded:
        assert (trace.experts == whole.experts[:, :1]).all()
    with pytest.raises(ConfigError, match="layers = 3: it has 2"):
        plan(tmp_path, [group], layers=3, **given)


def test_a_recording_of_another_model_is_not_cut_to_fit(tmp_path):
    group = {"policies": ["lru"], "cache": ["50%"], "warmup_steps": 1, "measured_steps": 4, "instrumented_steps": 1}
    write(tmp_path, 6)
    trace = Trace.load(tmp_path / "recorded.safetensors")
    trace.first_layers(1).save(tmp_path / "shallow.safetensors")
    with pytest.raises(ConfigError, match=r"shallow\.safetensors: 1 MoE layers, tiny-fp32 has 2"):
        plan(tmp_path, [group], layers=1, trace="shallow.safetensors")


def test_a_model_is_there_once(tmp_path):
    write_model(tmp_path, precision="fp32", **SHAPE)
    path = tmp_path / "twice.yaml"
    synthetic = {"overlap": 0.4, "busiest": 0.2, "recall": 0.9}
    models = [{"model": "tiny-fp32.yaml", "synthetic": synthetic, "layers": layers} for layers in (1, 2)]
    path.write_text(yaml.safe_dump({
        "name": "twice", "title": "t", "hardware": "cpu", "context_tokens": 8, "models": models,
        "groups": [{"policies": ["lru"], "cache": ["50%"]}],
    }))
    with pytest.raises(ConfigError, match=r"tiny-fp32\.yaml is there twice"):
        Validation.load(path)


def test_another_source_is_another_trace(tmp_path):
    group = [{"policies": ["lru"], "cache": ["50%"], "warmup_steps": 1, "measured_steps": 4, "instrumented_steps": 1}]
    write(tmp_path, 6)
    first = plan(tmp_path, group, trace="recorded.safetensors")
    write(tmp_path, 7)
    second = plan(tmp_path, group, trace="recorded.safetensors")
    assert first[0].cell == second[0].cell
    assert first[0].trace != second[0].trace


def test_a_trace_too_short_is_refused(tmp_path):
    write(tmp_path, 6)
    with pytest.raises(ConfigError, match=r"decode in batches of 1: 165 steps asked for, the trace has 6"):
        plan(
            tmp_path, [{"policies": ["lru"], "cache": ["50%"], "measured_steps": 128, "instrumented_steps": 5}],
            trace="recorded.safetensors",
        )


def test_bad_values_are_named_with_their_line(tmp_path):
    with pytest.raises(ConfigError, match=r"validation\.yaml:\d+: .*lruu"):
        plan(tmp_path, [{"policies": ["lruu"], "cache": ["50%"]}])
    with pytest.raises(ConfigError, match=r"validation\.yaml:\d+"):
        plan(tmp_path, [{"policies": ["lru"], "cache": ["150%"]}])


def test_an_engine_with_software_queues_is_refused(tmp_path):
    shipped = Path(__file__).parents[2] / "configs" / "h200.yaml"
    path = tmp_path / "queued.yaml"
    path.write_text(shipped.read_text().replace("engine: graph\n", "") + "\nengine: promoe\n")
    with pytest.raises(ConfigError, match="engine = promoe: no device here keeps its copies in software queues"):
        Validation.load(path)
