"""The same token in both worlds: host, GPU and copies during a few layers, measured above simulated."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hw_validate.measurement import Slice, Timelines
from moesim import timeline as moesim_timeline
from moesim.report.figures.canvas import new_figure, plain
from moesim.report.words import CLASSES
from moesim.timeline import Timeline

WORLDS = ("measured", "simulated")
LAYERS_SHOWN = 3
TRACKS = ("host", "compute", "copies")
TRACK_WORDS = {"host": "host", "compute": "GPU", "copies": "copies"}
COPY_COLOUR, HOST_COLOUR, READ_COLOUR = "#ee6677", "#ccbb44", "#998822"

Excerpt = tuple[int, int, list[moesim_timeline.Slice]]
"""Begin, end, and the slices that touch the time between."""


def cells_of(timelines: Timelines) -> dict[str, list[Slice]]:
    """The slices by cell, in the order of the file, of cells that both worlds tell of."""
    cells: dict[str, list[Slice]] = {}
    for each in timelines.slices:
        cells.setdefault(each.cell, []).append(each)
    return {cell: slices for cell, slices in cells.items() if {each.world for each in slices} == set(WORLDS)}


def timeline_of(slices: Sequence[Slice], world: str) -> Timeline:
    """One world's slices as moesim keeps them."""
    return Timeline(experts_per_layer=1, slices=[
        moesim_timeline.Slice(each.track, each.name, each.start_ns, each.end_ns, each.layer, each.expert)
        for each in slices if each.world == world
    ])


def excerpts(slices: Sequence[Slice]) -> tuple[tuple[int, int], dict[str, Excerpt]]:
    """First and last layer shown, and each world's excerpt of them: layers in the token's middle that both ran."""
    layers = [
        {each.layer for each in slices if each.world == world and each.track == "compute" and each.layer >= 0}
        for world in WORLDS
    ]
    both = sorted(layers[0] & layers[1]) or [-1]
    first = max(0, (len(both) - LAYERS_SHOWN) // 2)
    shown = both[first : first + LAYERS_SHOWN]
    end = max(each.end_ns for each in slices)
    return (shown[0], shown[-1]), {
        world: timeline_of(slices, world).excerpt(0, end, shown[0], shown[-1]) for world in WORLDS
    }


def draw(slices: Sequence[Slice]) -> Figure:
    """One cell's token; each world begins where its excerpt begins, so that drift before it does not hide the rest."""
    _, shown = excerpts(slices)
    figure = new_figure(10, 3.7)
    panel = figure.subplots()
    places, names = [], []
    for track_place, track in enumerate(reversed(TRACKS)):
        for world_place, world in enumerate(reversed(WORLDS)):
            height = 2.4 * track_place + world_place
            places.append(height)
            names.append(f"{TRACK_WORDS[track]}, {world}")
            _track(panel, shown[world], track, height)
            if world == "simulated":
                panel.axhspan(height - 0.5, height + 0.5, color="#f3f4f6", lw=0, zorder=0)
    panel.set_yticks(places, names)
    panel.set_ylim(-0.6, max(places) + 0.6)
    panel.set_xlim(0, max(end - begin for begin, end, _ in shown.values()) / 1e6)
    panel.set_xlabel("time since the excerpt's first kernel, ms")
    plain(panel)
    panel.tick_params(axis="y", length=0)
    legend = {
        "attention, router and other dense work": CLASSES["attention"][1],
        "experts": CLASSES["experts"][1],
        "copy of experts": COPY_COLOUR,
        "host enqueues": HOST_COLOUR,
        "host reads ids back": READ_COLOUR,
    }
    figure.legend(
        [Patch(color=colour) for colour in legend.values()], list(legend), loc="outside upper center", ncols=5,
        fontsize=8,
    )
    return figure


def _track(panel: Axes, excerpt: Excerpt, track: str, height: float) -> None:
    begin, end, slices = excerpt
    # A world may tell of its copies by stream or by wire; the stream comes first, since every world has it.
    drawn = [each for each in slices if each.track == track]
    if track == "copies" and not drawn:
        drawn = [each for each in slices if each.track == "link"]
    bars: dict[str, list[tuple[float, float]]] = {}
    for each in drawn:
        left, right = max(each.start_ns, begin), min(each.end_ns, end)
        if right > left:
            bars.setdefault(_colour(each, track), []).append(((left - begin) / 1e6, (right - left) / 1e6))
    for colour, spans in bars.items():
        panel.broken_barh(spans, (height - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.3)


def _colour(each: moesim_timeline.Slice, track: str) -> str:
    if track == "copies":
        return COPY_COLOUR
    if track == "host":
        return READ_COLOUR if each.name == "read back" else HOST_COLOUR
    return CLASSES["experts" if each.name == "experts" else "attention"][1]
