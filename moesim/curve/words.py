"""Curves as text on a terminal, and as plain values for a script."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from moesim.curve.curves import Curves
from moesim.curve.split import UNKNOWN
from moesim.summary import console, share

SHARES = (0.01, 0.02, 0.05, 0.1, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
COLUMNS = {
    "lru": "LRU", "lru_even": "even", "lru_split": "best split",
    "optimum": "optimum", "optimum_even": "even", "optimum_split": "best split",
}


def print_curves(curves: Curves) -> None:
    """Hit rates at some sizes, and working sets."""
    out = console()
    everything = curves.layers * curves.experts
    out.print(
        f"[bold]{escape(curves.trace)}[/bold]: {curves.accesses:,} accesses in {curves.steps:,} steps of "
        f"{curves.layers} layers, {curves.compulsory:,} of them first uses; the largest event needs "
        f"{curves.largest_event} experts"
    )
    out.print("Hit rate: one pool, and a pool for each layer")
    table = Table(box=None, pad_edge=False)
    for head in ("cache", "slots", *(head for name, head in COLUMNS.items() if name in curves.misses)):
        table.add_column(head, justify="right")
    for part in SHARES:
        slots = int(part * everything + 1e-9)
        rates = [share(curves.hit_rate(name, slots)) for name in COLUMNS if name in curves.misses]
        table.add_row(f"{part:.1%}", f"{slots:,}", *rates)
    out.print(table)
    out.print("– an event would not fit and would run in waves\n")
    out.print("Working set: distinct experts of a layer in consecutive steps")
    table = Table(box=None, pad_edge=False)
    for head in ("steps", "mean", "least layer", "most"):
        table.add_column(head, justify="right")
    for steps, means in curves.working_sets.items():
        mean = sum(means) / len(means)
        table.add_row(f"{steps:,}", f"{mean:.1f}", f"{min(means):.1f}", f"{max(means):.1f}")
    out.print(table)


def plain_values(curves: Curves) -> dict[str, Any]:
    """Everything; `misses[name][c]` for c slots is null where an event would not fit."""
    return {
        "trace": curves.trace,
        "layers": curves.layers,
        "experts_per_layer": curves.experts,
        "steps": curves.steps,
        "accesses": curves.accesses,
        "compulsory": curves.compulsory,
        "largest_event": curves.largest_event,
        "misses": {
            name: [None if each == UNKNOWN else each for each in misses.tolist()]
            for name, misses in curves.misses.items()
        },
        "lru_distances_by_layer": curves.distances.tolist(),
        "working_sets": [
            {"steps": steps, "experts_by_layer": means} for steps, means in curves.working_sets.items()
        ],
    }
