"""What all figures share: a plain style, and files whose bytes depend on their content alone."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moesim.atomic_write import atomic_write

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "moesim",
    "svg.fonttype": "path",
    "figure.dpi": 110,
}


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that no global state knows of."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, grid: str | None = "x") -> None:
    """Grid lines along one axis only, or none."""
    axes.grid(visible=False)
    if grid in ("x", "y"):
        axes.grid(visible=True, axis="x" if grid == "x" else "y")


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG, without the date."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "moesim"})
    return buffer.getvalue()


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Write NAME.svg and NAME.png, each whole or not at all; returns the SVG.

    Raises:
        InputError: they cannot be written.
    """
    svg = as_svg(figure)
    with atomic_write(folder / f"{name}.svg") as file:
        file.write(svg)
    with mpl.rc_context(STYLE), atomic_write(folder / f"{name}.png") as file:
        figure.savefig(file, format="png", metadata={"Software": "moesim"}, dpi=150)
    return svg
