"""Agreement of both worlds, on cells whose answer is known beforehand."""

import pytest

from hw_validate.agreement import errors, errors_by, outputs, ranking
from hw_validate.comparison import row_of

from .cells_for_tests import MACHINE, measurement


def row(*arguments, **more):
    return row_of(measurement(*arguments, **more), MACHINE)


def test_median_and_worst_are_of_absolute_errors():
    rows = [row(measured_ms=100, simulated_ms=each, cache=cache)
            for each, cache in ((99, 0.1), (102, 0.25), (92, 0.5))]
    found = errors(rows)
    assert (found.cells, found.median, found.worst) == (3, pytest.approx(0.02), pytest.approx(0.08))
    assert found.worst_row["cache_fraction"] == 0.5
    assert found.median_met
    assert errors([row(measured_ms=100, simulated_ms=103.1)]).median_met is False
    assert errors([row(measured_ms=100, simulated_ms=107.9)]).worst_met is True
    assert errors([row(measured_ms=100, simulated_ms=91.9)]).worst_met is False


def test_errors_by_the_columns_asked_for():
    rows = [row(batch=1, simulated_ms=44), row(batch=4, simulated_ms=42), row(batch=4, simulated_ms=36, cache=0.5)]
    by = errors_by(rows, "phase", "batch_tokens")
    assert [(key, each.cells, round(each.worst, 3)) for key, each in by.items()] == [
        (("decode", 1), 1, 0.1), (("decode", 4), 2, 0.1),
    ]


def test_the_order_of_policies():
    rows = [
        row("lru", measured_ms=40, simulated_ms=41),
        row("fifo", measured_ms=44, simulated_ms=40.5),  # clearly slower in measurement, faster in simulation
        row("lfu", measured_ms=60, simulated_ms=58),  # slower in both
        row("least-stale", measured_ms=40.01, simulated_ms=45, seed=1),  # measured like lru: no order
        row("lru", 0.5, measured_ms=1, simulated_ms=99),  # another cache: compared with nothing
    ]
    found = ranking(rows)
    assert (found.pairs, found.overlapping, found.ordered, found.alike) == (6, 1, 5, 3)
    assert [(faster["policy"], slower["policy"]) for faster, slower in found.different] == [
        ("lru", "fifo"), ("least-stale", "fifo"),
    ]


def test_a_simulated_tie_is_no_agreement():
    rows = [row("lru", measured_ms=40, simulated_ms=42), row("fifo", measured_ms=44, simulated_ms=42)]
    assert ranking(rows).alike == 0


def test_cells_without_an_interval_have_no_order():
    rows = [row("lru", measured_ms=40, count=1), row("fifo", measured_ms=80, count=1)]
    assert (ranking(rows).pairs, ranking(rows).ordered) == (1, 0)


def test_lossless_outputs_must_agree_and_lossy_ones_need_not():
    good = [row("lru"), row("fifo"), row("lru", 0.5), row("resident-execute"), row("speculate-and-execute")]
    found = outputs(good)
    assert (found.groups, found.cells, found.different) == (1, 3, [])
    bad = row("least-stale", output_sha256="other")
    found = outputs([*good, bad, row("lru", batch=4, output_sha256="x"), row("lfu", output_sha256="")])
    assert (found.groups, found.cells) == (1, 4)
    assert [[each["policy"] for each in group] for group in found.different] == [["lru", "fifo", "lru", "least-stale"]]
