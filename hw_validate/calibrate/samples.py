"""Repeated readings of one quantity: the median, and the range that holds most of them."""

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from moesim.quantity import Quantity


def quantity(readings: list[float], source: str) -> Quantity:
    """Median, 5th and 95th percentile, with what was read and how.

    A reading that is the difference of two falls below nothing when the machine stalls in the lesser: it counts as 0.
    """
    low, centre, high = np.percentile(np.maximum(readings, 0), [5, 50, 95])
    low, centre, high = (float(f"{each:.6g}") for each in (min(low, centre), centre, max(high, centre)))
    return Quantity(value=centre, low=low, high=high, source=source)


def host_ns(call: Callable[[], object], calls: int, repetitions: int, settle: Callable[[], object]) -> list[float]:
    """Host time of one call, `repetitions` times the mean over `calls`; `settle` runs between the repetitions."""
    readings = []
    for _ in range(repetitions):
        settle()
        begin = perf_counter_ns()
        for _ in range(calls):
            call()
        readings.append((perf_counter_ns() - begin) / calls)
    settle()
    return readings


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line through (x, y); relative errors count alike."""
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    return float(slope), float(intercept)
