"""Speed against its cost: time per output token, and the increase of perplexity that a policy was measured to bring."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from moesim.quality.stored import Interval
from moesim.report.figures.canvas import new_figure
from moesim.report.figures.panels import policy_order
from moesim.report.rows import Results, Row, deployable
from moesim.report.words import percent, policy_colours, policy_words

Point = tuple[Row, Interval]


def draw(results: Results) -> Figure | None:
    """The rows of the main grid that could be deployed and whose cost is known; None if no lossy one's is."""
    rows = [row for row in results.main_grid if deployable(row)]
    points = [(row, cost) for row in rows if (cost := results.cost(row)) is not None]
    if all(row["lossless"] for row, _ in points):
        return None
    figure = new_figure(10, 4.6)
    axes = figure.subplots()
    colours = policy_colours(row["policy"] for row in results.main_grid)
    for place, policy in enumerate(policy_order([row for row, _ in points])):
        of_policy = [(row, cost) for row, cost in points if row["policy"] == policy]
        look: dict[str, Any] = {"color": colours[policy], "marker": "osD^v<>"[place % 7], "linestyle": "none"}
        spread = [[100 * (c.value - c.low) for _, c in of_policy], [100 * (c.high - c.value) for _, c in of_policy]]
        axes.errorbar(
            [row["tpot_mean_ns"] / 1e6 for row, _ in of_policy], [100 * cost.value for _, cost in of_policy], spread,
            label=policy_words(policy), elinewidth=1, markersize=5, **look,
        )
    best = front(points)
    axes.plot(
        [row["tpot_mean_ns"] / 1e6 for row, _ in best], [100 * cost.value for _, cost in best], color="black",
        linewidth=1, drawstyle="steps-post", zorder=1, label="nothing faster is cheaper",
    )
    for row, cost in best:
        axes.annotate(
            percent(row["cache_fraction"]), (row["tpot_mean_ns"] / 1e6, 100 * cost.value), xytext=(4, 5),
            textcoords="offset points", fontsize=7,
        )
    axes.set_xlabel("time per output token, ms")
    another = any(results.is_another_model(row["trace"]) for row, _ in points)
    axes.set_ylabel("increase of perplexity, %" + (", of another model of this shape" if another else ""))
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def front(points: Sequence[Point]) -> list[Point]:
    """The points to which none is both as fast and cheaper, or as cheap and faster; the fastest first.

    A lossy policy cannot be better than the true model: an increase below zero counts as none.
    """
    found: list[Point] = []
    for row, cost in sorted(points, key=lambda point: (float(point[0]["tpot_mean_ns"]), max(0.0, point[1].value))):
        if not found or max(0.0, cost.value) < max(0.0, found[-1][1].value):
            found.append((row, cost))
    return found
