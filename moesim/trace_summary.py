"""What `moesim trace info` tells about a trace, as plain data for JSON and as tables for people."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.trace import DECODE, PREFILL, Trace
from moesim.trace_statistics import (
    busiest_share,
    lru_hit_rate,
    overlap_with_previous_token,
    prediction_recall,
    shuffled_overlap,
)

_FEW = 12
"""Kinds of request that the table names; the rest is counted."""


def summarize(trace: Trace, statistics_rows: int) -> dict[str, Any]:
    """Everything about a trace that its header and its small arrays tell, and statistics of its first rows.

    `statistics_rows` bounds the rows that are read for the statistics, and so their time and memory; 0 leaves the
    statistics out.
    """
    metadata = trace.metadata
    request = trace.request
    numbers, counts = np.unique(request, return_counts=True)
    tokens_of = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    kinds: dict[str, dict[str, int]] = {}
    kind_of = {each.request: each.kind for each in metadata.requests}
    for number, tokens in tokens_of.items():
        entry = kinds.setdefault(kind_of.get(number, "unmarked"), {"requests": 0, "tokens": 0})
        entry["requests"] += 1
        entry["tokens"] += tokens
    summary = {
        "path": None if trace.path is None else str(trace.path),
        "file_bytes": None if trace.path is None else trace.path.stat().st_size,
        **metadata.model_dump(mode="json", exclude={"predictors", "requests"}),
        "tokens": trace.tokens,
        "prefill_tokens": int((trace.phase == PREFILL).sum()),
        "decode_tokens": int((trace.phase == DECODE).sum()),
        "steps": 1 + int(np.count_nonzero(np.diff(trace.step))),
        "requests": len(tokens_of),
        "kinds": dict(sorted(kinds.items(), key=lambda item: (-item[1]["tokens"], item[0]))),
        "arrays": {
            name: {"type": str(array.dtype), "shape": list(array.shape), "bytes": array.nbytes}
            for name, array in trace.arrays().items()
        },
        "predictors": {
            name: {**each.model_dump(mode="json"), "ranked": int(trace.predicted[name].ranking.shape[2])}
            for name, each in metadata.predictors.items()
        },
        "statistics": None,
    }
    if statistics_rows:
        _add_statistics(summary, trace, statistics_rows)
    trace.release()
    return summary


def _add_statistics(summary: dict[str, Any], trace: Trace, rows: int) -> None:
    """Overlap, skew, LRU and every predictor's recall over the first rows; dropped tokens are left out."""
    experts = np.array(trace.experts[:rows])
    whole = (experts != trace.absent).all((1, 2))
    read, experts = len(experts), experts[whole]
    if len(experts) < 2:
        return
    quarter = trace.n_experts // 4
    summary["statistics"] = {
        "rows_read": read,
        "rows_counted": len(experts),
        "overlap_with_previous_token": _mean(overlap_with_previous_token(experts)),
        "overlap_shuffled": _mean(shuffled_overlap(experts)),
        "busiest_tenth_share": _mean(busiest_share(experts, trace.n_experts)),
        "lru_hit_rate_at_quarter": (
            _mean(lru_hit_rate(experts, trace.n_experts, quarter)) if quarter else None
        ),
    }
    for name, prediction in trace.predicted.items():
        recall = prediction_recall(experts, np.array(prediction.ranking[:read])[whole])
        foreseen = recall[~np.isnan(recall)]
        summary["predictors"][name]["recall_at_top_k"] = _mean(foreseen) if foreseen.size else None
        summary["predictors"][name]["recall_at_top_k_by_layer"] = [
            None if np.isnan(value) else float(value) for value in recall
        ]


def _mean(per_layer: NDArray[np.float64]) -> float:
    return float(per_layer.mean())


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a summary as tables."""
    mark = " (synthetic)" if summary["synthetic"] else ""
    console.print(Text(f"{summary['name']}{mark}", style="bold red" if mark else "bold"))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(summary):
        facts.add_row(name, Text(str(value)))
    console.print(facts)
    for title, columns, rows in _tables(summary):
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)


def _facts(summary: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    layers = summary["moe_layers"]
    span = f"{layers[0]} to {layers[-1]}" if len(layers) == layers[-1] - layers[0] + 1 else ", ".join(map(str, layers))
    yield "model", summary["model"]
    yield "routing", (
        f"{summary['layers']} MoE layers ({span}), {summary['experts']} experts each, top-{summary['top_k']}"
    )
    yield "tokens", (
        f"{summary['tokens']:,} of {summary['requests']:,} request{'s' * (summary['requests'] > 1)}, in "
        f"{summary['steps']:,} steps: {summary['prefill_tokens']:,} prefill, "
        f"{summary['decode_tokens']:,} decode ({summary['decoding']})"
    )
    if summary["file_bytes"] is not None:
        yield "file", f"{summary['path']}, {size(summary['file_bytes'])}"
    for name in ("dataset", "tokenizer", "licence", "source"):
        yield name, summary[name]
    yield "recorder", f"{summary['recorder']} {summary['recorder_version']}"
    if summary["notes"]:
        yield "notes", summary["notes"]
    found = summary["statistics"]
    if found is None:
        return
    whole = found["rows_read"] == summary["tokens"]
    yield "statistics", f"means over layers, {'all' if whole else 'the first'} {found['rows_counted']:,} tokens"
    before, shuffled = found["overlap_with_previous_token"], found["overlap_shuffled"]
    ratio = f", {before / shuffled:.2f} times" if shuffled else ""
    yield "overlap with the previous token", f"{before:.3f} (shuffled {shuffled:.3f}{ratio})"
    yield "busiest tenth of the experts", f"{found['busiest_tenth_share']:.3f} of all selections"
    if found["lru_hit_rate_at_quarter"] is not None:
        yield "LRU, a quarter of each layer", f"{found['lru_hit_rate_at_quarter']:.3f} hits"


def _tables(summary: dict[str, Any]) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    kinds = list(summary["kinds"].items())
    rows = [[kind, f"{each['requests']:,}", f"{each['tokens']:,}"] for kind, each in kinds[:_FEW]]
    if len(kinds) > _FEW:
        rest = [each for _, each in kinds[_FEW:]]
        rows.append([
            f"{len(rest)} more kinds", f"{sum(each['requests'] for each in rest):,}",
            f"{sum(each['tokens'] for each in rest):,}",
        ])
    yield "Requests", ["kind", "requests", "tokens"], rows
    yield "Arrays", ["array", "type", "shape", "size"], [
        [name, each["type"], " x ".join(map(str, each["shape"])), size(each["bytes"])]
        for name, each in summary["arrays"].items()
    ]
    if summary["predictors"]:
        yield "Predictors", ["predictor", "ranked", "layers ahead", "recall at top-k", "made"], [
            [
                name, str(each["ranked"]), str(each["layer_offset"]),
                "" if each.get("recall_at_top_k") is None else f"{each['recall_at_top_k']:.3f}", each["point"],
            ]
            for name, each in summary["predictors"].items()
        ]


def size(count: int) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
