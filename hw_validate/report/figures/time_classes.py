"""Where the time of a step goes in both worlds: a pair of stacked bars per policy, one panel per cache size."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hw_validate.comparison import Row
from moesim.report.figures.canvas import new_figure, plain
from moesim.report.words import CLASSES, percent, policy_words

WORLDS = (("measured", 0.2, 1.0), ("simulated", -0.2, 0.5))
"""Name, place beside the policy's height, and opacity of each world's bar."""


def draw(rows: Sequence[Row]) -> Figure | None:
    """Bars of one model, phase and batch; None if neither world told its classes of any cell."""
    if not any(row[f"{name}_{world}_ns"] is not None for row in rows for name in CLASSES for world, _, _ in WORLDS):
        return None
    caches = sorted({row["cache_fraction"] for row in rows})
    policies = sorted({row["policy"] for row in rows}, key=lambda policy: _place(policy, rows))
    heights = {policy: len(policies) - 1 - place for place, policy in enumerate(policies)}
    figure = new_figure(10, 1.55 + 0.5 * len(policies))
    axes = figure.subplots(1, len(caches), sharex=True, sharey=True, squeeze=False)[0]
    for panel, cache in zip(axes, caches, strict=True):
        panel.set_title(f"cache {percent(cache)}")
        plain(panel)
        panel.tick_params(axis="y", length=0)
        told = {row["policy"]: row for row in rows if row["cache_fraction"] == cache}
        for policy, height in heights.items():
            if policy in told:
                _bars(panel, told[policy], height)
            else:
                panel.text(0, height, "  not measured", va="center", fontsize=7, color="#888888")
    lossy = {row["policy"] for row in rows if not row["lossless"]}
    axes[0].set_yticks(
        list(heights.values()), [policy_words(each) + (" – lossy" if each in lossy else "") for each in heights]
    )
    axes[0].set_ylim(-0.6, len(policies) - 0.4)
    axes[0].set_xlim(left=0)
    figure.supxlabel("time per step, ms", fontsize=9)
    handles: list[Patch | Line2D] = [Patch(color=colour) for _, colour in CLASSES.values()]
    labels = [words for words, _ in CLASSES.values()]
    handles += [Patch(color="#777777", alpha=opacity, lw=0) for _, _, opacity in WORLDS]
    handles.append(Line2D([], [], color="black", linewidth=2))
    labels += ["upper bar: measured", "lower, pale bar: simulated", "mean time of the bare steps"]
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _place(policy: str, rows: Sequence[Row]) -> tuple[bool, str]:
    """Lossless policies first, then by name."""
    return any(row["policy"] == policy and not row["lossless"] for row in rows), policy


def _bars(panel: Axes, row: Row, height: int) -> None:
    for world, beside, opacity in WORLDS:
        left = 0.0
        for name, (_, colour) in CLASSES.items():
            value = row[f"{name}_{world}_ns"]
            if value is not None:
                panel.barh(height + beside, value / 1e6, left=left, height=0.38, color=colour, alpha=opacity, lw=0)
                left += value / 1e6
        # The classes come from instrumented steps, which are a little slower than the bare ones that count.
        mean = row[f"tpot_{world}_ns"] / 1e6
        panel.plot([mean, mean], [height + beside - 0.19, height + beside + 0.19], color="black", linewidth=2)
