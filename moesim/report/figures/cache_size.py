"""Hit rate and time per output token against cache size, with the bounds."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moesim.report.figures.canvas import new_figure, plain
from moesim.report.figures.panels import policy_order
from moesim.report.rows import Results, Row
from moesim.report.words import policy_colours, policy_words


def draw(results: Results) -> Figure | None:
    """Lines of the main grid; None for fewer than two cache sizes."""
    rows = results.main_grid
    if len({row["cache_fraction"] for row in rows if 0 < row["cache_fraction"] < 1}) < 2:
        return None
    figure = new_figure(10, 4.2)
    hits, times = figure.subplots(1, 2)
    colours = policy_colours(row["policy"] for row in rows)
    for place, policy in enumerate(policy_order(rows)):
        of_policy = sorted(
            (row for row in rows if row["policy"] == policy), key=lambda row: float(row["cache_fraction"])
        )
        look: dict[str, Any] = {
            "color": colours[policy],
            "linestyle": ":" if of_policy[0]["bound"] else "-" if of_policy[0]["lossless"] else "--",
            # Where two policies do the same, the larger mark of the one below shows.
            "marker": "osD^v<>"[place % 7],
            "markersize": 6 - 0.4 * min(place, 8),
            "label": policy_words(policy),
        }
        if len(of_policy) == 1:
            times.axhline(of_policy[0]["tpot_mean_ns"] / 1e6, **{**look, "marker": ""})
            continue
        _line(hits, of_policy, "resident_hit_rate", 100, look)
        _line(times, of_policy, "tpot_mean_ns", 1e-6, look)
    hits.set_ylabel("hits on experts kept from before, %")
    hits.set_ylim(0, 100)
    times.set_ylabel("time per output token, ms")
    times.set_ylim(bottom=0)
    for axes in (hits, times):
        plain(axes, "y")
        axes.set_xlabel("experts that have a slot, %")
    figure.legend(*times.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _line(axes: Axes, rows: list[Row], column: str, scale: float, look: dict[str, Any]) -> None:
    points = [(100 * row["cache_fraction"], scale * row[column]) for row in rows if row[column] is not None]
    axes.plot(*zip(*points, strict=True), **look)
