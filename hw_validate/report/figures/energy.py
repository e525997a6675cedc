"""Energy per token by policy and cache size: one panel per model, decoding one sequence."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hw_validate.comparison import Row
from hw_validate.report.words import model_words
from moesim.report.figures.canvas import new_figure, plain
from moesim.report.words import percent, policy_words

CACHE_COLOURS = ("#bbbbbb", "#ddaa33", "#cc6677", "#332288", "#117733", "#44aa99")


def draw(rows: Sequence[Row]) -> Figure | None:
    """A dot per cell of decode at batch 1 whose energy was measured; None without any."""
    told = [
        row for row in rows
        if row["energy_per_token_j"] is not None and row["phase"] == "decode" and row["batch_tokens"] == 1
    ]
    if not told:
        return None
    models = sorted({row["model"] for row in told})
    policies = sorted({row["policy"] for row in told})
    heights = {policy: len(policies) - 1 - place for place, policy in enumerate(policies)}
    caches = sorted({row["cache_fraction"] for row in told})
    colours = {cache: CACHE_COLOURS[place % len(CACHE_COLOURS)] for place, cache in enumerate(caches)}
    figure = new_figure(10, 1.35 + 0.36 * len(policies))
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(axes, models, strict=True):
        panel.set_title(model_words(model))
        plain(panel)
        panel.tick_params(axis="y", length=0)
        for height in heights.values():
            panel.axhline(height, color="#eeeeee", linewidth=0.8, zorder=0)
        for row in told:
            if row["model"] == model:
                colour = colours[row["cache_fraction"]]
                face = "white" if row["throttled"] else colour
                panel.plot(
                    [row["energy_per_token_j"]], [heights[row["policy"]]], marker="o", color=colour,
                    markerfacecolor=face, markersize=7,
                )
        panel.set_xlim(0, 1.1 * max(row["energy_per_token_j"] for row in told if row["model"] == model) or 1)
    axes[0].set_yticks(list(heights.values()), [policy_words(policy) for policy in heights])
    axes[0].set_ylim(-0.6, len(policies) - 0.4)
    figure.supxlabel("energy of the GPU per token, J", fontsize=9)
    marks = [Line2D([], [], marker="o", color=colour, linestyle="none", markersize=7) for colour in colours.values()]
    labels = [f"cache {percent(cache)}" for cache in colours]
    figure.legend(marks, labels, loc="outside upper center", ncols=6, fontsize=8)
    return figure
