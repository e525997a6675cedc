"""What ran when: slices on a track each for host, streams and link, and their form for ui.perfetto.dev."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from moesim.atomic_write import atomic_write

TRACKS = ("host", "compute", "copies", "link")
"""In the order in which they are shown; further streams come behind."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that took time. `layer` and `expert` are -1 where they do not apply."""

    track: str
    name: str
    start_ns: int
    end_ns: int
    layer: int = -1
    expert: int = -1


@dataclass
class Timeline:
    """Slices in the order in which they were known; experts are numbered within their layer."""

    experts_per_layer: int
    slices: list[Slice] = field(default_factory=list)
    layers: int | None = None
    """Where experts have versions: how many layers there are before the second version's numbers begin."""

    def add(self, track: str, name: str, start_ns: int, end_ns: int, layer: int = -1, expert: int = -1) -> None:
        """Add a slice; `expert` is `layer * experts + expert`, which gives the layer too."""
        if expert >= 0:
            layer, expert = divmod(expert, self.experts_per_layer)
            layer = layer if self.layers is None else layer % self.layers
        self.slices.append(Slice(track, name, start_ns, end_ns, layer, expert))

    def between(self, start_ns: int, end_ns: int) -> list[Slice]:
        """The slices that touch an interval, by start."""
        touching = [each for each in self.slices if each.end_ns > start_ns and each.start_ns < end_ns]
        order = self.tracks
        return sorted(touching, key=lambda each: (each.start_ns, order.index(each.track)))

    @property
    def tracks(self) -> list[str]:
        """The names of all tracks."""
        return list(dict.fromkeys([*TRACKS, *(each.track for each in self.slices)]))

    def excerpt(self, begin_ns: int, end_ns: int, first_layer: int, last_layer: int) -> tuple[int, int, list[Slice]]:
        """Some layers of one token: from the first one's attention to the end of the last one's kernels."""
        kernels = [each for each in self.between(begin_ns, end_ns) if each.track == "compute"]
        start = min((each.start_ns for each in kernels if each.layer == first_layer), default=begin_ns)
        stop = max((each.end_ns for each in kernels if each.layer == last_layer), default=end_ns)
        return start, stop, self.between(start, stop)

    def save_perfetto(self, path: Path) -> None:
        """Write the JSON that ui.perfetto.dev opens: one thread per track, microseconds with three decimals.

        Raises:
            InputError: it cannot be written.
        """
        with atomic_write(path) as file:
            file.write(perfetto({"moesim": self}))


def perfetto(processes: dict[str, Timeline]) -> bytes:
    """Timelines by the name of their process, as the JSON that ui.perfetto.dev opens."""
    records: list[dict[str, object]] = []
    for process, (process_name, timeline) in enumerate(processes.items(), start=1):
        order = timeline.tracks
        records.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": process_name}})
        records += [
            {"ph": "M", "pid": process, "tid": number, "name": "thread_name", "args": {"name": track}}
            for number, track in enumerate(order, start=1)
        ]
        for each in sorted(timeline.slices, key=lambda each: each.start_ns):
            name = each.name
            if each.layer >= 0:
                name += f" L{each.layer}"
            if each.expert >= 0:
                name += f" E{each.expert}"
            records.append({
                "ph": "X", "pid": process, "tid": order.index(each.track) + 1, "name": name, "cat": each.name,
                "ts": each.start_ns / 1000, "dur": (each.end_ns - each.start_ns) / 1000,
                "args": {"layer": each.layer, "expert": each.expert, "start_ns": each.start_ns, "end_ns": each.end_ns},
            })
    return json.dumps({"traceEvents": records, "displayTimeUnit": "ns"}).encode()
