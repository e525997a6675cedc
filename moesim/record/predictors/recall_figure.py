"""The recall of every predictor, drawn: by layer, and by how heavy the expert was."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moesim.atomic_write import atomic_write
from moesim.errors import ConfigError
from moesim.report.figures.canvas import STYLE, new_figure, plain
from moesim.report.words import COLOURS

SUFFIXES = ("png", "svg", "pdf")
_KNOWN = (
    "residual",
    "residual+default-vectors",
    "router-input",
    "previous-token",
    "static-frequency",
    "activation-matrix",
    "estimator",
    "hybrid",
)
_LINES = ("-", "--", ":", "-.")
_MARKS = "osD^v<>PX*"


def draw(told: dict[str, Any]) -> Figure:
    """The figure of a `recall_report.report`."""
    k = told["top_k"]
    figure = new_figure(10, 7)
    ((at_k, at_more), (mass, slots)) = figure.subplots(2, 2)
    lines, looks = [], _looks(list(told["predictors"]))
    for place, (name, each) in enumerate(told["predictors"].items()):
        # Where two predictors do the same, the larger mark of the one below shows.
        size = max(2.0, (6.5 if len(told["moe_layers"]) <= 24 else 4.5) - 0.6 * place)
        look: dict[str, Any] = {**looks[name], "markersize": size, "linewidth": 1.2}
        by_layer = each["by_layer"]
        (line,) = at_k.plot(told["moe_layers"], _gaps(by_layer["recall_at_k"]), **look)
        at_more.plot(told["moe_layers"], _gaps(by_layer["recall_at_1_5_k"]), **look)
        mass.plot(told["moe_layers"], _gaps(by_layer["weight_mass_recall"]), **look)
        slots.plot(range(1, k + 1), _gaps(each["recall_by_slot"]), **look)
        lines.append(line)
    _label(at_k, f"recall at {k}", "MoE layer")
    _label(at_more, f"recall at {told['overfetched']} (1.5 k)", "MoE layer")
    _label(mass, f"share of the gate weight foreseen at {k}", "MoE layer")
    _label(slots, f"recall at {k} by the expert's gate weight", "rank of the chosen expert, 1 is the heaviest")
    phase = "" if told["phase"] == "all" else f"{told['phase']} "
    figure.suptitle(f"{told['trace']}: {told['tokens_counted']:,} {phase}tokens", fontsize=11)
    figure.legend(lines, list(told["predictors"]), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def save(told: dict[str, Any], path: Path) -> None:
    """Draw and write PNG, SVG or PDF, whichever the name ends in.

    Raises:
        ConfigError: another ending.
        InputError: it cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"--plot {path}: a figure's name ends in .png, .svg or .pdf")
    with mpl.rc_context(STYLE):
        figure = draw(told)
        with atomic_write(path) as file:
            figure.savefig(file, format=kind, dpi=150)


def _looks(names: list[str]) -> dict[str, dict[str, str]]:
    """A colour, line and mark for each predictor; those of `_KNOWN` look the same in every figure."""
    order = [*_KNOWN, *(name for name in names if name not in _KNOWN)]
    return {
        name: {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": _LINES[place // len(COLOURS) % len(_LINES)],
            "marker": _MARKS[place % len(_MARKS)],
        }
        for place, name in enumerate(order)
    }


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _label(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes, "y")
