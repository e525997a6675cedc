"""The report's figures: one figure, one file. Each takes rows and gives a figure, or None without data for it."""

from collections.abc import Callable

from matplotlib.figure import Figure

from moesim.report.figures import bandwidth, cache_size, context, load, misses, pareto, time_by_policy, timeline
from moesim.report.rows import Results

FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "time-by-policy": time_by_policy.draw,
    "cache-size": cache_size.draw,
    "pareto": pareto.draw,
    "misses": misses.draw,
    "timeline": timeline.draw,
    "bandwidth": bandwidth.draw,
    "context": context.draw,
    "load": load.draw,
}
