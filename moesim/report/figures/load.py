"""What requests wait for, and what comes out, against the rate at which they came."""

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from moesim.report.figures.canvas import new_figure, plain
from moesim.report.rows import Results, Row
from moesim.report.words import percent, policy_colours, policy_words

WAITS = {"ttft": "time to first token, s", "itl": "between tokens, s"}


def draw(results: Results) -> Figure | None:
    """A panel for each kind of waiting, its mean and its 99th percentile, and one for the requests served."""
    rows = results.load_grid
    if not rows:
        return None
    lines: dict[tuple[str, float], list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["arrived_per_s"])):
        lines.setdefault((row["policy"], row["cache_fraction"]), []).append(row)
    colours = policy_colours(row["policy"] for row in results.rows)
    # Sizes of one policy are told apart by marks.
    marks = dict(zip(dict.fromkeys(cache for _, cache in lines), "os^vD" * len(lines), strict=False))
    figure = new_figure(11, 3.9)
    waits = figure.subplots(1, 3)
    served = waits[-1]
    for (policy, cache), line in lines.items():
        style = {"color": colours[policy], "marker": marks[cache], "markersize": 4}
        for axes, name in zip(waits, WAITS, strict=False):
            known = [row for row in line if row[f"{name}_mean_ns"] is not None]  # a single token has nothing between
            arriving = [row["arrived_per_s"] for row in known]
            axes.plot(arriving, [row[f"{name}_mean_ns"] / 1e9 for row in known], **style)
            axes.plot(arriving, [row[f"{name}_p99_ns"] / 1e9 for row in known], linestyle=":", **style)
        words = policy_words(policy) + (", bound" if line[0]["bound"] else "")
        arriving = [row["arrived_per_s"] for row in line]
        served.plot(arriving, [row["requests_per_s"] for row in line], label=f"{words}, {percent(cache)}", **style)
    rates = sorted({row["arrived_per_s"] for row in rows})
    served.plot(rates, rates, color="#999999", linewidth=0.8, linestyle="--", label="all that came")
    for axes, words in zip(waits, [*WAITS.values(), "requests served per second"], strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("requests coming per second")
        axes.set_title(words)
        plain(axes, "y")
    figure.legend(*served.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure
