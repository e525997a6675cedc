"""What host, GPU and link do during a few layers of one token, for several policies on one time scale."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from moesim.report.figures.canvas import new_figure, plain
from moesim.report.rows import Results
from moesim.report.words import CLASSES, percent, policy_words

TRACKS = {"host": 2, "compute": 1, "link": 0}
COPY_COLOUR, HOST_COLOUR, READ_COLOUR = "#ee6677", "#ccbb44", "#998822"


def draw(results: Results) -> Figure | None:
    """One panel per timeline that the sweep stored."""
    timelines = results.timelines
    if not timelines:
        return None
    timelines = sorted(timelines, key=lambda each: each["cache_fraction"])
    longest = max(each["end_ns"] - each["start_ns"] for each in timelines) / 1e6
    figure = new_figure(10, 0.9 + 1.45 * len(timelines))
    axes = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    for panel, timeline in zip(axes, timelines, strict=True):
        start = timeline["start_ns"]
        for each in timeline["slices"]:
            left = max(each["start_ns"], start)
            right = min(each["end_ns"], timeline["end_ns"])
            if right > left and each["track"] in TRACKS:
                panel.broken_barh(
                    [((left - start) / 1e6, (right - left) / 1e6)],
                    (TRACKS[each["track"]] - 0.36, 0.72),
                    facecolors=_colour(each),
                    edgecolor="white",
                    linewidth=0.3,
                )
        panel.set_yticks(list(TRACKS.values()), ["host", "GPU", "link"])
        panel.set_ylim(-0.6, 2.6)
        first, last = timeline["layers"]
        took = (timeline["end_ns"] - start) / 1e6
        panel.set_title(
            f"{policy_words(timeline['policy'])}, cache {percent(timeline['cache_fraction'])}: "
            f"layers {first} to {last} in {took:.2f} ms",
            loc="left",
        )
        plain(panel)
        panel.tick_params(axis="y", length=0)
    axes[-1].set_xlim(0, longest)
    axes[-1].set_xlabel("ms")
    legend = {
        "attention, router": CLASSES["attention"][1],
        "experts": CLASSES["experts"][1],
        "copy of one expert": COPY_COLOUR,
        "host enqueues": HOST_COLOUR,
        "host reads ids back": READ_COLOUR,
    }
    figure.legend(
        [Patch(color=colour) for colour in legend.values()],
        list(legend),
        loc="outside upper center",
        ncols=5,
        fontsize=8,
    )
    return figure


def _colour(each: dict[str, Any]) -> str:
    if each["track"] == "link":
        return COPY_COLOUR
    if each["track"] == "host":
        return READ_COLOUR if each["name"] == "read back" else HOST_COLOUR
    return CLASSES["experts" if each["name"] == "experts" else "attention"][1]
