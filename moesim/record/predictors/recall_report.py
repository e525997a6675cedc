"""What `moesim trace predictors` tells, as plain data for JSON and as tables for people."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.errors import ConfigError, nearest
from moesim.record.predictors.recall import Recall, measure_recall, overall, overfetched
from moesim.record.predictors.trace_channels import Channel, channels
from moesim.trace import DECODE, PREFILL, Trace

PHASES: Final = ("decode", "prefill", "all")
FIGURES: Final = {"recall_at_k": "at_k", "recall_at_1_5_k": "at_1_5_k", "weight_mass_recall": "weight_mass"}
"""The figures by their names in JSON, and the fields of `Recall` that hold them."""


def report(trace: Trace, phase: str | None = None, rows: int = 0) -> dict[str, Any]:
    """The recall of every recorded and computed channel over the first `rows` tokens (0: all) of a phase.

    Without a `phase`, decode tokens are counted, which is where policies speculate; a trace that has none is counted
    whole.

    Raises:
        ConfigError: an unknown phase, or one of which the rows read have no token.
    """
    read = trace.slice(0, rows) if 0 < rows < trace.tokens else trace
    phase, counted = _counted(read, phase)
    return {
        "trace": trace.metadata.name,
        "path": None if trace.path is None else str(trace.path),
        "synthetic": trace.metadata.synthetic,
        "top_k": trace.top_k,
        "overfetched": overfetched(trace.top_k),
        "tokens": trace.tokens,
        "tokens_read": read.tokens,
        "phase": phase,
        "tokens_counted": int(counted.sum()),
        "moe_layers": trace.metadata.moe_layers,
        "predictors": {
            each.name: _told(each, measure_recall(read, each.prediction, counted)) for each in channels(read)
        },
    }


def _counted(trace: Trace, phase: str | None) -> tuple[str, NDArray[np.bool_]]:
    phases = np.asarray(trace.phase)
    if phase is None:
        phase = "decode" if (phases == DECODE).any() else "all"
    if phase not in PHASES:
        raise ConfigError(f"--phase {phase}: {nearest(phase, PHASES)}")
    if phase == "all":
        return phase, np.ones(trace.tokens, np.bool_)
    counted = phases == (DECODE if phase == "decode" else PREFILL)
    if not counted.any():
        raise ConfigError(f"--phase {phase}: {trace.label} has no {phase} token in the rows that are read")
    return phase, counted


def _told(channel: Channel, recall: Recall) -> dict[str, Any]:
    return {
        "origin": channel.origin,
        **channel.availability.model_dump(mode="json"),
        "ranked": int(channel.prediction.ranking.shape[-1]),
        "coverage": recall.coverage,
        **{name: overall(getattr(recall, field)) for name, field in FIGURES.items()},
        "recall_by_slot": [overall(column) for column in recall.by_slot.T],
        "by_layer": {
            "tokens": recall.tokens.tolist(),
            **{name: _or_none(getattr(recall, field)) for name, field in FIGURES.items()},
        },
    }


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def print_report(told: dict[str, Any], console: Console) -> None:
    """One table over all layers, one with the recall at k of every layer."""
    mark = " (synthetic)" if told["synthetic"] else ""
    console.print(Text(f"{told['trace']}{mark}", style="bold red" if mark else "bold"))
    cut = "" if told["tokens_read"] == told["tokens"] else f" of the first {told['tokens_read']:,} (--rows)"
    what = {"all": "", "decode": "decode ", "prefill": "prefill "}[told["phase"]]
    console.print(f"{told['tokens_counted']:,} {what}tokens{cut}; means over the layers that are foreseen")
    k, predictors = told["top_k"], told["predictors"]
    keys = _keys(len(predictors))
    table = Table(box=None, pad_edge=False)
    for title in ("", "predictor"):
        table.add_column(title, overflow="fold")
    recalls = (f"@{k}", f"@{told['overfetched']}", "weight")
    for title in ("ahead", "foreseen", *recalls, "#1", f"#{k}"):
        table.add_column(title, justify="right", no_wrap=True)
    for key, (name, each) in zip(keys, predictors.items(), strict=True):
        table.add_row(
            key, Text(name), str(each["layer_offset"] or "pass"), f"{100 * each['coverage']:.0f} %",
            *(_cell(each[figure]) for figure in FIGURES),
            _cell(each["recall_by_slot"][0]), _cell(each["recall_by_slot"][-1]),
        )
    console.print(table)
    console.print(
        f"ahead: layers, or before the pass; @n: recall among the first n named; weight: gate weight foreseen at {k}; "
        f"#n: recall at {k} of the expert with the n-th largest gate weight",
        style="dim",
    )
    console.print(f"\nrecall@{k} by layer", style="bold")
    columns = {key: each["by_layer"]["recall_at_k"] for key, each in zip(keys, predictors.values(), strict=True)}
    for shown in _that_fit(keys, console.width):
        layers = Table(box=None, pad_edge=False)
        for title in ("layer", *shown):
            layers.add_column(title, justify="right", no_wrap=True)
        for index, number in enumerate(told["moe_layers"]):
            layers.add_row(str(number), *(_cell(columns[key][index]) for key in shown))
        console.print(layers)
        console.print()
    for key, (name, each) in zip(keys, predictors.items(), strict=True):
        console.print(Text.assemble(
            (f"{key} {name}", "bold"), f": {each['origin']}, known {each['point']}; {each['description']}"
        ))


def _keys(count: int) -> list[str]:
    """a, b, …, z, aa, ab, …: names for columns too narrow for a predictor's."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [letters[place] if place < 26 else letters[place // 26 - 1] + letters[place % 26] for place in range(count)]


def _that_fit(keys: list[str], width: int) -> Iterator[list[str]]:
    """The columns in groups, each as many as the terminal is wide enough for."""
    count = max(1, (width - len("layer ")) // len("0.000  "))
    for start in range(0, len(keys), count):
        yield keys[start : start + count]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

