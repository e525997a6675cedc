"""Bars by policy, one panel for each cache size: the layout of two figures."""

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moesim.report.figures.canvas import new_figure, plain
from moesim.report.rows import Row, kind
from moesim.report.words import percent, policy_words

KINDS = ("lossless", "lossy", "bound")


def policy_order(rows: Sequence[Row]) -> list[str]:
    """Lossless policies first, then lossy ones, then bounds; each in the order of the sweep."""
    kinds = {row["policy"]: kind(row) for row in rows}
    return sorted(kinds, key=lambda policy: KINDS.index(kinds[policy]))


def panels(rows: Sequence[Row]) -> tuple[Figure, list[tuple[Axes, float]], dict[str, int]]:
    """A figure with a panel per cache size below 100 %, and the height of each policy's bar."""
    caches = sorted({row["cache_fraction"] for row in rows if row["cache_fraction"] < 1}) or [1.0]
    policies = policy_order([row for row in rows if row["cache_fraction"] in caches])
    heights = {policy: len(policies) - 1 - place for place, policy in enumerate(policies)}
    kinds = {row["policy"]: kind(row) for row in rows}
    figure = new_figure(max(6.5, 2.2 + 2.1 * len(caches)), 1.5 + 0.34 * len(policies))
    axes = figure.subplots(1, len(caches), sharex=True, sharey=True, squeeze=False)[0]
    for panel, cache in zip(axes, caches, strict=True):
        panel.set_title(f"cache {percent(cache)}")
        plain(panel)
        panel.tick_params(axis="y", length=0)
        for above, below in itertools.pairwise(policies):
            if kinds[above] != kinds[below]:
                panel.axhline((heights[above] + heights[below]) / 2, color="#999999", linewidth=0.8)
    notes = {"lossless": "", "lossy": " – lossy", "bound": " – bound"}
    axes[0].set_yticks(list(heights.values()), [policy_words(policy) + notes[kinds[policy]] for policy in heights])
    axes[0].set_ylim(-0.7, len(policies) - 0.3)
    return figure, list(zip(axes, caches, strict=True)), heights
