"""The same token in both worlds: pictures for the page, and one Perfetto file with a process for each world."""

from collections.abc import Sequence

from hw_validate import measurement
from hw_validate.measurement import Timelines
from hw_validate.report.figures.token_timeline import WORLDS, cells_of, excerpts, timeline_of
from hw_validate.report.section import Picture, Section
from moesim.timeline import Slice, Timeline, perfetto

GAP_NS = 1_000_000
"""Between the tokens of two cells in the Perfetto file."""


def timeline_section(pictures: list[Picture]) -> Section:
    """An excerpt of each cell's token."""
    return Section(
        "The same token in both worlds",
        "A few layers from the token's middle. Each world starts at its own first kernel of the excerpt. The whole "
        "token of both worlds is in timeline.perfetto.json, for ui.perfetto.dev.",
        pictures=pictures,
    )


def title_of(slices: Sequence[measurement.Slice], cell: str) -> str:
    """What a picture shows: the cell, in words, the layers, and how long each world takes for them."""
    (first, last), shown = excerpts(slices)
    took = ", ".join(f"{world} {(end - begin) / 1e6:.2f} ms" for world, (begin, end, _) in shown.items())
    layers = "" if first < 0 else f", layers {first} to {last}"
    return f"{cell}{layers}: {took}"


def both_worlds(timelines: Timelines, names: dict[str, str]) -> bytes:
    """The Perfetto file: cells one after the other, at the same place in both processes, named on their own track."""
    processes = {world: Timeline(experts_per_layer=1) for world in WORLDS}
    begin = 0
    for cell, slices in cells_of(timelines).items():
        longest = max(each.end_ns for each in slices)
        for world, process in processes.items():
            own = timeline_of(slices, world).slices
            process.slices.append(Slice("token", names.get(cell, cell), begin, begin + max(e.end_ns for e in own)))
            process.slices += [
                Slice(each.track, each.name, begin + each.start_ns, begin + each.end_ns, each.layer, each.expert)
                for each in own
            ]
        begin += longest + GAP_NS
    return perfetto(processes)
