"""Time per output token by policy and cache size, stacked as the named sum, with the link floor marked."""

from typing import Any

from matplotlib.figure import Figure

from moesim.report.figures.panels import panels
from moesim.report.rows import Results
from moesim.report.words import CLASSES


def draw(results: Results) -> Figure | None:
    """Bars of the main grid; None for a single run."""
    rows = results.main_grid
    if len(rows) < 2:
        return None
    figure, axes, heights = panels(rows)
    resident = next((row for row in rows if row["policy"] == "all-resident"), None)
    for panel, cache in axes:
        for row in rows:
            if row["cache_fraction"] != cache:
                continue
            height, left = heights[row["policy"]], 0.0
            for name, (_, colour) in CLASSES.items():
                width = row[f"tpot_{name}_ns"] / 1e6
                panel.barh(height, width, left=left, height=0.62, color=colour, alpha=1.0 if row["feasible"] else 0.35)
                left += width
            if row["tpot_fast_ns"] is not None and row["tpot_slow_ns"] is not None:
                span = [row["tpot_fast_ns"] / 1e6, row["tpot_slow_ns"] / 1e6]
                panel.plot(span, [height, height], color="black", linewidth=1)
            floor = row["link_floor_ns"] / 1e6
            panel.plot([floor, floor], [height - 0.4, height + 0.4], color="black", linewidth=2)
            if not row["feasible"]:
                panel.text(left, height, " does not fit", va="center", fontsize=7)
        if resident is not None:
            panel.axvline(resident["tpot_mean_ns"] / 1e6, color="#555555", linestyle=":", linewidth=1.2)
    figure.supxlabel("time per output token, ms", fontsize=9)
    handles: list[Any] = [figure.axes[0].barh(0, 0, color=colour) for _, colour in CLASSES.values()]
    labels = [words for words, _ in CLASSES.values()]
    (floor_mark,) = figure.axes[0].plot([], [], color="black", linewidth=2)
    (range_mark,) = figure.axes[0].plot([], [], color="black", linewidth=1)
    handles += [floor_mark, range_mark]
    labels += ["link floor: bytes / bandwidth", "range of the hardware's figures"]
    if resident is not None:
        (line,) = figure.axes[0].plot([], [], color="#555555", linestyle=":", linewidth=1.2)
        handles.append(line)
        labels.append("all experts resident (bound)")
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
    return figure
