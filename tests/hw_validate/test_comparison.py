"""comparison.parquet: one row per cell, its columns as promised, its numbers as computed by hand."""

import pyarrow.parquet as pq
import pytest

from hw_validate.comparison import SCHEMA, rows_of, write_comparison
from hw_validate.measurement import MachineFacts, Measurement, Telemetry, World, save
from hw_validate.validation import read_validation
from moesim.errors import InputError

from .cells_for_tests import MACHINE, folder_of, measurement, world

PROMISED = [
    "model", "layers", "layers_of_model", "trace", "synthetic", "policy", "cache_fraction", "phase", "batch_tokens",
    "context_tokens", "steps_measured", "tpot_measured_ns", "tpot_measured_low_ns", "tpot_measured_high_ns",
    "tpot_simulated_ns", "tpot_error", "hits_measured", "hits_simulated", "misses_measured", "misses_simulated",
    "bytes_measured", "bytes_simulated", "executed", "executed_differently", "decisions_compared",
    "decisions_different", "sequences_identical", "timing_dependent", "lossless", "attention_measured_ns",
    "attention_simulated_ns", "experts_measured_ns", "experts_simulated_ns", "exposed_copy_measured_ns",
    "exposed_copy_simulated_ns", "host_measured_ns", "host_simulated_ns", "idle_measured_ns", "idle_simulated_ns",
    "power_mean_w", "energy_per_token_j", "sm_clock_mean_mhz", "sm_clock_min_mhz", "throttled", "throttle_reasons",
    "output_sha256",
]


def rows_in(folder):
    rows = rows_of(read_validation(folder))
    write_comparison(rows, folder / "comparison.parquet")
    table = pq.read_table(folder / "comparison.parquet")
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def test_the_promised_columns_are_there():
    assert set(PROMISED) <= set(SCHEMA.names)


def test_a_cell_becomes_a_row(tmp_path):
    cell = measurement(
        batch=4,
        count=4,
        measured=World(
            step_ns=[90, 110, 90, 110], hits=7, misses=3, bytes_copied=300, attention_ns=1.0, experts_ns=2.0,
            exposed_copy_ns=3.0, host_ns=4.0, idle_ns=5.0,
        ),
        simulated=world([102, 104, 102, 104], hits=7, misses=3, bytes_copied=300),
        telemetry=Telemetry(samples=1, energy_j=32.0, power_mean_w=200.0, throttle_reasons=["sw_power_cap"]),
    )
    (row,) = rows_in(folder_of(tmp_path / "out", [cell]))
    assert row["tpot_measured_ns"] == 100
    assert row["tpot_simulated_ns"] == 103
    assert row["tpot_error"] == pytest.approx(0.03)
    assert 80 <= row["tpot_measured_low_ns"] < 100 < row["tpot_measured_high_ns"] <= 120
    assert row["energy_per_token_j"] == 2.0  # 4 steps of 4 tokens
    assert [row[f"{name}_measured_ns"] for name in ("attention", "experts", "exposed_copy", "host", "idle")] == [
        1, 2, 3, 4, 5,
    ]
    assert row["throttled"]
    assert row["throttle_reasons"] == ["sw_power_cap"]
    assert row["sequences_identical"] is True
    assert (row["gpu"], row["steps_measured"], row["layers_of_model"]) == ("NVIDIA H200", 4, 16)


def test_rows_come_in_a_fixed_order(tmp_path):
    cells = [measurement(policy, cache) for policy in ("lru", "fifo") for cache in (0.5, 0.1)]
    rows = rows_in(folder_of(tmp_path / "out", cells))
    assert [(row["cache_fraction"], row["policy"]) for row in rows] == [
        (0.1, "fifo"), (0.1, "lru"), (0.5, "fifo"), (0.5, "lru"),
    ]


@pytest.mark.parametrize(
    ("change", "identical"),
    [
        ({}, True),
        ({"executed_differently": 1}, False),
        ({"decisions_different": 1}, False),
        ({"simulated": world([100], hits=2999)}, False),
        ({"executed": 0, "decisions_compared": 0}, None),
    ],
)
def test_sequences_are_identical_only_if_all_of_it_is(tmp_path, change, identical):
    (row,) = rows_in(folder_of(tmp_path / "out", [measurement(**change)]))
    assert row["sequences_identical"] is identical


def test_energy_per_token_is_told_of_decoding_alone(tmp_path):
    rows = rows_in(folder_of(tmp_path / "out", [measurement(phase="prefill"), measurement()]))
    assert [row["energy_per_token_j"] for row in rows] == [pytest.approx(10.0), None]  # 250 W for 40 ms


def test_what_was_not_measured_is_empty(tmp_path):
    cell = measurement(count=1, measured=world([100], classes=False), telemetry=Telemetry(samples=0), output_sha256="")
    (row,) = rows_in(folder_of(tmp_path / "out", [cell]))
    for name in ("tpot_measured_low_ns", "attention_measured_ns", "power_mean_w", "energy_per_token_j"):
        assert row[name] is None
    assert row["throttled"] is False


def damaged(folder, damage):
    cells = folder / "cells"
    (first,) = cells.glob("*.json")
    if damage == "no cells":
        first.unlink()
    elif damage == "no machine":
        (folder / "machine.json").unlink()
    elif damage == "torn":
        first.write_text(first.read_text()[:-50])
    elif damage == "unknown key":
        first.write_text(first.read_text().replace('"lossless"', '"lossles"'))
    elif damage == "twice":
        (cells / "copy.json").write_text(first.read_text())
    elif damage == "no steps":
        save(measurement(measured=World(step_ns=[], hits=0, misses=0, bytes_copied=0)), first)
    elif damage == "torn limits":
        (folder / "limits.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    "damage", ["no cells", "no machine", "torn", "unknown key", "twice", "no steps", "torn limits"]
)
def test_a_damaged_folder_is_one_line_that_names_it(tmp_path, damage):
    folder = damaged(folder_of(tmp_path / "out", [measurement()]), damage)
    with pytest.raises(InputError) as refused:
        read_validation(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_fixture_speaks_the_contract():
    assert isinstance(MACHINE, MachineFacts)
    assert isinstance(measurement(), Measurement)
