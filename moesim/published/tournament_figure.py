"""A tournament at a glance: by trace, card and cache size, the best of each kind against the bounds."""

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from moesim.published.standings import Standing, tpot_ns
from moesim.published.tournament_page import card_words
from moesim.report.figures.canvas import STYLE, new_figure, plain
from moesim.report.words import BOUND_COLOUR
from moesim.sweep_tasks import Row

Chosen = Callable[[Standing], Row | None]
LINES: Mapping[str, tuple[Chosen, dict[str, Any]]] = {
    "best lossless": (
        lambda place: next(iter(place.lossless), None), {"color": "#117733", "marker": "o", "linestyle": "-"}
    ),
    "best lossless that only copies": (
        lambda place: next(iter(place.copying), None), {"color": "#332288", "marker": "s", "linestyle": "-"}
    ),
    "best lossy": (
        lambda place: next(iter(place.lossy), None), {"color": "#cc6677", "marker": "D", "linestyle": "--"}
    ),
    "optimal eviction, every miss copied (bound)": (
        lambda place: place.optimal_eviction, {"color": BOUND_COLOUR, "linestyle": ":"}
    ),
    "all experts resident (bound)": (
        lambda place: place.all_resident, {"color": BOUND_COLOUR, "linestyle": "-", "linewidth": 1}
    ),
}


def draw(places: Sequence[Standing], titles: Mapping[str, str]) -> Figure:
    """A panel for each trace (downwards) and card (across); cache sizes across, time upwards, logarithmic."""
    cards = list(dict.fromkeys(place.card for place in places))
    traces = [trace for trace in titles if any(place.trace == trace for place in places)]
    sizes = sorted({place.cache for place in places})
    with rc_context(STYLE):
        figure = new_figure(2.2 + 2.1 * len(cards), 0.9 + 1.75 * len(traces))
        panels = figure.subplots(len(traces), len(cards), sharex=True, sharey="row", squeeze=False)
        for trace, row in zip(traces, panels, strict=True):
            row[0].set_ylabel(f"{fill(titles[trace], 24)}\nms per token", fontsize=8)
            for card, panel in zip(cards, row, strict=True):
                _panel(panel, [place for place in places if (place.trace, place.card) == (trace, card)], sizes)
        for card, panel in zip(cards, panels[0], strict=True):
            panel.set_title(card_words(card))
        for panel in panels[-1]:
            panel.set_xlabel("experts that have a slot, %")
        handles = [panels[0][-1].plot([], [], label=label, **look)[0] for label, (_, look) in LINES.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _panel(panel: Axes, places: Sequence[Standing], sizes: Sequence[float]) -> None:
    plain(panel, "y")
    for chosen, look in LINES.values():
        points = [(sizes.index(place.cache), chosen(place)) for place in places]
        known = [(at, tpot_ns(row) / 1e6) for at, row in points if row is not None]
        if known:
            panel.plot(*zip(*known, strict=True), markersize=4, **look)
    for at in set(range(len(sizes))) - {sizes.index(place.cache) for place in places}:
        where = panel.get_xaxis_transform()
        panel.text(at, 0.5, "does not fit", rotation=90, ha="center", va="center", color="#777777", transform=where)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xticks(range(len(sizes)), [f"{100 * size:g}" for size in sizes])
    panel.set_xlim(-0.3, len(sizes) - 0.7)
