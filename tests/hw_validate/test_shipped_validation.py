"""What was measured on an H200 lies in plots/h200: the simulator of today is held against it, without a GPU."""

from pathlib import Path
from statistics import median

import pytest

from hw_validate.agreement import TARGET_MEDIAN, TARGET_WORST
from hw_validate.grid import Plan, Validation, config_path
from hw_validate.harness import Harness
from hw_validate.measurement import Measurement, load
from hw_validate.run import simulate_cell

SHIPPED = Path(__file__).parents[2] / "plots" / "h200"
CONFIGS = Path(__file__).parents[2] / "configs"
CELLS = {
    f"olmoe-1b-7b.{cell}"
    for cell in (
        "on-demand.0.decode.batch1", "speculate-and-execute.0.decode.batch1", "lru.0.25.decode.batch1",
        "least-stale.0.1.decode.batch1", "prefetch-and-refetch.0.5.decode.batch1",
        "resident-execute.0.25.decode.batch1", "all-resident.1.decode.batch1", "lru.0.25.prefill.batch1",
    )
}


def test_the_profile_is_the_one_that_was_calibrated_with_it():
    assert (SHIPPED / "h200.yaml").read_bytes() == (CONFIGS / "hardware" / "h200.yaml").read_bytes()


def test_every_cell_that_was_measured_is_reported():
    measured = {path.stem for path in (SHIPPED / "measured").glob("*.npz")}
    assert measured == {path.stem for path in (SHIPPED / "cells").glob("*.json")}
    assert len(measured) == 99


def test_todays_simulator_is_as_far_off_as_the_report_says(tmp_path):
    path = config_path("h200")
    validation = Validation.load(path)
    small = validation.model_copy(update={"models": validation.models[:1]})
    plan = Plan(small, path, tmp_path)
    harness = Harness(small, plan, SHIPPED, "cuda", pytest.fail)
    errors = []
    todo = [planned for planned in plan.cells["olmoe-1b-7b"] if planned.cell.name in CELLS]
    assert {planned.cell.name for planned in todo} == CELLS
    for planned in todo:
        found, _ = simulate_cell(harness, planned)
        assert (found.executed_differently, found.decisions_different) == (0, 0), planned.cell.name
        stored = load(SHIPPED / "cells" / f"{planned.cell.name}.json", Measurement)
        assert found == stored, f"{planned.cell.name}: `hw_validate compare h200 --out plots/h200` makes it anew"
        errors.append(abs(found.simulated.tpot_ns / found.measured.tpot_ns - 1))
    assert median(errors) <= TARGET_MEDIAN
    assert max(errors) <= TARGET_WORST
