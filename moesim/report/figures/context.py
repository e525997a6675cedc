"""Time per output token against context, with published figures beside ours."""

from matplotlib.figure import Figure

from moesim.report.figures.canvas import new_figure, plain
from moesim.report.rows import Results
from moesim.report.words import policy_colours, policy_words


def draw(results: Results) -> Figure | None:
    """Lines with the interval of the hardware's ranges as a band."""
    rows = results.context_grid
    if not rows:
        return None
    colours = policy_colours(row["policy"] for row in results.rows)
    figure = new_figure(7.5, 4)
    axes = figure.subplots()
    for policy in dict.fromkeys(row["policy"] for row in rows):
        line = sorted(
            (row for row in rows if row["policy"] == policy and row["context_tokens"] is not None),
            key=lambda row: int(row["context_tokens"]),
        )
        contexts = [row["context_tokens"] for row in line]
        axes.plot(
            contexts,
            [row["tpot_mean_ns"] / 1e6 for row in line],
            marker="o",
            markersize=4,
            color=colours[policy],
            label=policy_words(policy),
        )
        if all(row["tpot_fast_ns"] is not None for row in line):
            axes.fill_between(
                contexts,
                [row["tpot_fast_ns"] / 1e6 for row in line],
                [row["tpot_slow_ns"] / 1e6 for row in line],
                color=colours[policy],
                alpha=0.18,
                linewidth=0,
            )
        facts = [
            fact for fact in results.sweep.get("published", []) if fact["policy"] == policy and fact["context_tokens"]
        ]
        if facts:
            axes.scatter(
                [fact["context_tokens"] for fact in facts],
                [fact["tpot_ns"] / 1e6 for fact in facts],
                marker="D",
                s=42,
                facecolors="none",
                edgecolors=colours[policy],
                linewidths=1.5,
                zorder=5,
                label=f"{policy_words(policy)}, published",
            )
    axes.set_xscale("log", base=2)
    ticks = sorted({row["context_tokens"] for row in rows if row["context_tokens"] is not None})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("time per output token, ms")
    plain(axes, "y")
    axes.legend(fontsize=8)
    return figure
