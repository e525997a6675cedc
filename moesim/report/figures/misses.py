"""The misses of a token by reason, for every policy and cache size."""

from typing import Any

from matplotlib.figure import Figure

from moesim.report.figures.panels import panels
from moesim.report.rows import Results
from moesim.report.words import REASONS


def draw(results: Results) -> Figure | None:
    """Bars of the main grid; None where nothing missed."""
    rows = [row for row in results.main_grid if row["policy"] != "all-resident"]
    if len(rows) < 2 or not any(row["misses"] for row in rows):
        return None
    figure, axes, heights = panels(rows)
    for panel, cache in axes:
        for row in rows:
            if row["cache_fraction"] != cache:
                continue
            left = 0.0
            for reason, (_, colour) in REASONS.items():
                width = row[f"misses_{reason}"] / row["tokens_measured"]
                panel.barh(heights[row["policy"]], width, left=left, height=0.62, color=colour)
                left += width
    figure.supxlabel("misses per token", fontsize=9)
    handles: list[Any] = [figure.axes[0].barh(0, 0, color=colour) for _, colour in REASONS.values()]
    labels = [words for words, _ in REASONS.values()]
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8)
    return figure
