"""Simulated against measured time per output token, and what remains: the error of every cell."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hw_validate.agreement import TARGET_MEDIAN, TARGET_WORST
from hw_validate.comparison import Row
from hw_validate.report.words import model_words
from moesim.report.figures.canvas import new_figure
from moesim.report.words import policy_colours, policy_words

MARKERS = "osD^vP*X"
BANDS = ((TARGET_WORST, "#e8eaee"), (TARGET_MEDIAN, "#cdd2da"))


def draw(rows: Sequence[Row]) -> Figure:
    """Two panels over the measured time: the simulated time, and its error in per cent."""
    figure = new_figure(10, 5.4)
    parity, error = figure.subplots(1, 2)
    times = [row[name] / 1e6 for row in rows for name in ("tpot_measured_ns", "tpot_simulated_ns")]
    ends = min(times) / 1.25, max(times) * 1.25
    parity.plot(ends, ends, color="#555555", linewidth=0.8)
    error.axhline(0, color="#555555", linewidth=0.8)
    for share, colour in BANDS:
        parity.fill_between(ends, [x * (1 - share) for x in ends], [x * (1 + share) for x in ends], color=colour, lw=0)
        error.axhspan(-100 * share, 100 * share, color=colour, lw=0)
    colours = policy_colours(row["policy"] for row in rows)
    markers = {model: MARKERS[place % len(MARKERS)] for place, model in enumerate(sorted({r["model"] for r in rows}))}
    for row in rows:
        _point(parity, error, row, colours[row["policy"]], markers[row["model"]])
    for axes in (parity, error):
        axes.set_xscale("log")
        axes.set_xlim(ends)
        axes.set_xlabel("measured time per step, ms")
        _plain_numbers(axes.xaxis, ends)
    parity.set_yscale("log")
    parity.set_ylim(ends)
    _plain_numbers(parity.yaxis, ends)
    parity.set_ylabel("simulated time per step, ms")
    parity.set_title("simulated against measured", loc="left")
    reach = 1.15 * max(100 * TARGET_WORST, *(100 * abs(row["tpot_error"]) for row in rows))
    error.set_ylim(-reach, reach)
    error.set_ylabel("simulated / measured − 1, per cent")
    error.set_title("error", loc="left")
    _legend(figure, colours, markers, rows)
    return figure


def _point(parity: Axes, error: Axes, row: Row, colour: str, marker: str) -> None:
    measured, simulated = row["tpot_measured_ns"] / 1e6, row["tpot_simulated_ns"] / 1e6
    face = "white" if row["throttled"] else colour
    for axes, height in ((parity, simulated), (error, 100 * row["tpot_error"])):
        axes.plot([measured], [height], marker=marker, color=colour, markerfacecolor=face, markersize=5, alpha=0.9)
    if row["tpot_measured_low_ns"] is None:
        return
    low, high = row["tpot_measured_low_ns"] / 1e6, row["tpot_measured_high_ns"] / 1e6
    parity.plot([low, high], [simulated, simulated], color=colour, linewidth=1)
    span = [100 * (simulated / end - 1) for end in (low, high)]
    error.plot([measured, measured], span, color=colour, linewidth=1)


def _plain_numbers(axis: Axis, ends: tuple[float, float]) -> None:
    """Ticks at 1, 2, 5, 10, …: the values are times to be read, not powers of ten. Fewer over a long range."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] / ends[0] < 2000 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, colours: dict[str, str], markers: dict[str, str], rows: Sequence[Row]) -> None:
    handles: list[Line2D | Patch] = [Patch(color=colour) for colour in colours.values()]
    labels = [policy_words(policy) for policy in colours]
    for model, marker in markers.items():
        handles.append(Line2D([], [], marker=marker, color="#555555", linestyle="none", markersize=5))
        labels.append(model_words(model))
    if any(row["throttled"] for row in rows):
        handles.append(
            Line2D([], [], marker="o", color="#555555", markerfacecolor="white", linestyle="none", markersize=5)
        )
        labels.append("hollow: throttled")
    for share, colour in reversed(BANDS):
        handles.append(Patch(color=colour))
        labels.append(f"within {100 * share:.0f} %")
    handles.append(Line2D([], [], color="#555555", linewidth=1))
    labels.append("95 % interval of the measured mean")
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
