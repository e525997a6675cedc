"""What repeated readings become."""

import pytest

from hw_validate.calibrate.kernels import row_of
from hw_validate.calibrate.samples import quantity
from moesim.model import Kernel


def test_a_difference_that_a_stalled_machine_turned_round_counts_as_nothing():
    found = quantity([-2000.0, 4000.0, 5000.0, -1.0, 9000.0], "copies less their parts")
    assert (found.low, found.value, found.high) == (0, 4000, pytest.approx(8200))
    assert quantity([-3.0, -2.0, -1.0], "all of them").high == 0


def test_no_kernel_takes_less_than_the_clock_tells():
    row = row_of(Kernel("router", 1, 1, 0, 1, 1), [-500.0, 20.0, 30.0])
    assert (row.low_ns, row.ns) == (3, 20)  # the 5th percentile of 1, 20 and 30
