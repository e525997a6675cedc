"""The figure of `moesim curve`: hit rates at every size, reuse distances and working sets by layer."""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from moesim.atomic_write import atomic_write
from moesim.curve.curves import Curves
from moesim.curve.split import UNKNOWN
from moesim.errors import ConfigError
from moesim.report.figures.canvas import STYLE, new_figure, plain

LINES = {
    "optimum": ("offline optimum, one pool", "#111111", "-"),
    "optimum_split": ("offline optimum, best pool for each layer", "#777777", "--"),
    "lru": ("LRU, one pool", "#1f6fb4", "-"),
    "lru_split": ("LRU, best pool for each layer", "#d95f02", "--"),
    "lru_even": ("LRU, even pools", "#e7a15c", ":"),
}
FORMATS = (".svg", ".png", ".pdf")
_METADATA = {
    ".svg": {"Date": None, "Creator": "moesim"}, ".png": {"Software": "moesim"}, ".pdf": {"CreationDate": None},
}


def check_format(path: Path) -> None:
    """Raise ConfigError if a figure cannot be written as this name says."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"--plot {path}: the name ends in {', '.join(FORMATS)}")


def save_figure(curves: Curves, path: Path) -> None:
    """Write the figure in the format that the name ends in.

    Raises:
        ConfigError: another ending, or the file cannot be written.
    """
    check_format(path)
    with mpl.rc_context(STYLE):
        figure = new_figure(13, 4.2)
        hits, distances, working = figure.subplots(1, 3)
        _draw_hits(hits, curves)
        image = _draw_distances(distances, curves)
        figure.colorbar(image, ax=distances, label="% of the layer's accesses")
        _draw_working_sets(working, curves)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], metadata=_METADATA[path.suffix], dpi=150)
    with atomic_write(path, ConfigError) as file:
        file.write(drawn.getvalue())


def _draw_hits(axes: Axes, curves: Curves) -> None:
    everything = curves.layers * curves.experts
    for name, (label, colour, style) in LINES.items():
        if name in curves.misses:
            slots = np.flatnonzero(curves.misses[name] != UNKNOWN)
            rate = 100 * (1 - curves.misses[name][slots] / curves.accesses)
            axes.plot(100 * slots / everything, rate, color=colour, linestyle=style, label=label)
    axes.set(xlabel="experts that have a slot, %", ylabel="hits, %", xlim=(0, 100), ylim=(0, 100), title="Hit rate")
    axes.legend(fontsize=7, loc="lower right")
    plain(axes, "y")


def _draw_distances(axes: Axes, curves: Curves) -> mpl.image.AxesImage:
    """Each layer's accesses by the slots they need, in bins that double; first uses are left out."""
    everything = curves.layers * curves.experts
    edges = [1 << power for power in range(everything.bit_length() + 1)]
    cumulated = np.cumsum(curves.distances[:, 1:], axis=1)
    at_edges = cumulated[:, np.minimum(np.array(edges) - 1, everything) - 1]
    at_edges[:, 0] = 0
    share = 100 * np.diff(at_edges, axis=1) / np.maximum(curves.distances.sum(1, keepdims=True), 1)
    image = axes.imshow(share, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest")
    axes.set_xticks(range(share.shape[1]), [f"{edge:,}" for edge in edges[:-1]], rotation=90)
    axes.set(xlabel="slots that LRU needs to hit, from", ylabel="layer", title="Reuse distance")
    plain(axes, None)
    return image


def _draw_working_sets(axes: Axes, curves: Curves) -> None:
    steps = list(curves.working_sets)
    means = np.array(list(curves.working_sets.values()))
    axes.fill_between(steps, means.min(1), means.max(1), color="#1f6fb4", alpha=0.2, label="from layer to layer")
    axes.plot(steps, means.mean(1), color="#1f6fb4", marker="o", markersize=3, label="mean over layers")
    axes.axhline(curves.experts, color="#111111", linestyle=":", label="all experts of a layer")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="consecutive steps", ylabel="distinct experts of a layer", ylim=(0, None), title="Working set")
    axes.legend(fontsize=7, loc="lower right")
    plain(axes, "y")
