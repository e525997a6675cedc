"""The CPU's figures of the shipped profile follow from its own observations, and change with them."""

import pytest

from hw_validate.calibrate.cpu_figures import cpu_expert_rows, cpu_figures
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.quantity import exact

MODELS = ("olmoe-1b-7b", "qwen3-30b-a3b", "mixtral-8x7b")


def test_the_h200s_figures_and_rows_are_those_of_its_observations():
    spec = HardwareSpec.load("h200")
    rows = [row for name in MODELS for row in cpu_expert_rows(ModelSpec.load(name), spec.observations)]
    assert rows == [row for row in spec.kernels if row.kernel == "cpu expert"]
    found = cpu_figures(spec.observations, rows)
    assert set(found) == {"host_bytes_per_s", "cpu_bytes_per_s", "cpu_expert_floor_ns"}
    for name, quantity in found.items():
        stored = spec.figures[name]
        assert [quantity.low, quantity.value, quantity.high] == [
            pytest.approx(each, rel=0.002) for each in (stored.low, stored.value, stored.high)
        ]


def test_by_hand():
    """The large expert is read at 10 GB/s; the small one takes 15 us longer than that; most threads count."""
    models = [
        ModelSpec.load("olmoe-1b-7b").model_copy(update={"name": name, "hidden": hidden, "expert_intermediate": 100})
        for name, hidden in (("large", 5000 // 3), ("small", 500 // 3))
    ]
    seen = {
        "host_memory_under_copies_bytes_per_s": exact(7e9, "made"),
        "link_under_1_copying_threads_bytes_per_s": exact(5e9, "made"),
        "link_under_12_copying_threads_bytes_per_s": exact(4e9, "made"),
        "cpu_expert_of_large_1_tokens_ns": exact(2 * models[0].expert_weights / 10, "made"),
        "cpu_expert_of_small_1_tokens_ns": exact(2 * models[1].expert_weights / 10 + 15_000, "made"),
    }
    rows = [row for model in models for row in cpu_expert_rows(model, seen)]
    found = {name: quantity.value for name, quantity in cpu_figures(seen, rows).items()}
    assert found == {
        "host_bytes_per_s": 11e9, "cpu_bytes_per_s": pytest.approx(10e9), "cpu_expert_floor_ns": pytest.approx(15_000),
    }
    assert set(cpu_figures(seen, [])) == {"host_bytes_per_s"}
