"""Results as text on a terminal: units that people read, colours only where they are seen."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moesim.result import Value

PLACE = {
    "grid": "grid", "trace": "trace", "model": "model", "hardware": "hardware", "link_bytes_per_s": "link",
    "engine": "engine", "context_tokens": "context", "arrivals_per_s": "arrivals/s", "arrivals": "arrivals",
    "max_batch": "at most", "kv_tokens": "KV tokens",
}
"""The columns within whose values policies compete, and their heads."""
WAITS = {
    "queueing": "arrival to first step", "ttft": "time to first token", "itl": "between tokens", "e2e": "end to end",
}
CLASSES = ("attention", "experts", "exposed_copy", "host", "idle")


def milliseconds(value: Value) -> str:
    """Nanoseconds as milliseconds."""
    return "–" if not isinstance(value, int | float) else f"{value / 1e6:,.2f} ms"


def share(value: Value) -> str:
    """A fraction in per cent."""
    return "–" if not isinstance(value, int | float) else f"{value:.1%}"


def quantity(name: str, value: Any) -> str:
    """A value in the unit that its name ends in."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes_per_s"):
        return f"{value / 1e9:,.1f} GB/s"
    if name.endswith("_bytes"):
        return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.2f} MB"
    if name == "parameters":
        return f"{value / 1e9:.1f} B"
    return str(value)


def console() -> Console:
    """Standard output as it is wide on a terminal; elsewhere lines are not broken, for whoever searches them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Any list of records."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.removesuffix("_per_s").removesuffix("_bytes").replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(quantity(name, value)) for name, value in row.items()))
    console().print(table)


def print_run(row: Mapping[str, Value]) -> None:
    """One run: its time, what the time is made of, and what the cache did."""
    out = console()
    _print_head(out, row)
    if row["tpot_mean_ns"] is None:
        out.print("no decode token was measured: lower --warmup, or give a trace that decodes")
        return
    out.print(
        f"TPOT {milliseconds(row['tpot_mean_ns'])} "
        f"({milliseconds(row['tpot_fast_ns'])} to {milliseconds(row['tpot_slow_ns'])} over the hardware's ranges), "
        f"p99 {milliseconds(row['tpot_p99_ns'])}, TTFT {milliseconds(row['ttft_mean_ns'])}"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in CLASSES:
        value = row[f"tpot_{name}_ns"]
        assert isinstance(value, float)
        assert isinstance(row["tpot_mean_ns"], float)
        table.add_row(f"  {name.replace('_', ' ')}", milliseconds(value), share(value / row["tpot_mean_ns"]))
    table.add_row("  link floor", milliseconds(row["link_floor_ns"]), "bytes / bandwidth")
    out.print(table)
    out.print(
        f"hits {share(row['hit_rate'])} of {row['hits'] or 0:,} + {row['misses'] or 0:,} accesses, "
        f"{quantity('_bytes', row['bytes_per_token'])} copied per token"
    )
    if row["experts_on_cpu"]:
        out.print(f"{row['experts_on_cpu']:,} misses executed on the CPU, busy {share(row['cpu_utilisation'])}")
    if not row["lossless"]:
        out.print(f"executed {share(row['weight_executed'])} of the router's weight")


def _print_head(out: Console, row: Mapping[str, Value]) -> None:
    """What was run."""
    labels = [name for name in ("bound", "open_loop", "synthetic") if row[name]]
    if not row["lossless"]:
        labels.append("lossy")
    if not row["feasible"]:
        labels.append("does not fit into the GPU's memory")
    note = f" [yellow]({', '.join(labels).replace('_', ' ')})[/yellow]" if labels else ""
    # A policy's brackets are markup to rich unless they are escaped.
    out.print(
        f"[bold]{escape(str(row['policy']))}[/bold]{note}: {row['model']} on {row['hardware']}, "
        f"cache {share(row['cache_fraction'])}, trace {row['trace']}"
    )


def print_served(row: Mapping[str, Value]) -> None:
    """A stream of requests: how long they waited, what came out, and what the machine did."""
    out = console()
    _print_head(out, row)
    rate = f" at {row['arrivals_per_s']:g}/s" if row["arrivals_per_s"] is not None else ""
    out.print(
        f"{row['requests']:,} requests ({escape(str(row['arrivals']))}{rate}), {row['requests_measured']:,} measured, "
        f"at most {row['max_batch']} at once"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("mean", "p50", "p95", "p99"):
        table.add_column(name, justify="right")
    for name, words in WAITS.items():
        table.add_row(f"  {words}", *(milliseconds(row[f"{name}_{each}_ns"]) for each in ("mean", "p50", "p95", "p99")))
    out.print(table)
    if row["requests_per_s"] is not None:
        out.print(f"{row['requests_per_s']:.4g} requests/s and {row['output_tokens_per_s']:.4g} tokens/s come out")
    total = row["run_total_ns"]
    assert isinstance(total, int)
    parts = []
    for name in CLASSES:
        value = row[f"run_{name}_ns"]
        assert isinstance(value, int)
        parts.append(f"{name.replace('_', ' ')} {share(value / total)}")
    out.print(f"of {total / 1e9:,.1f} s: {', '.join(parts)}")
    held, capacity = (quantity("_bytes", row[f"kv_{name}_bytes"]) for name in ("peak", "capacity"))
    out.print(f"hits {share(row['hit_rate'])} of the experts of decode steps; KV cache {held} at most, of {capacity}")


def print_sweep(rows: Sequence[Mapping[str, Value]], page: Path, seconds: float) -> None:
    """A sweep in a few lines: the best deployable lossless run of each place, and where the report is."""
    out = console()
    varying = [name for name in PLACE if len({row[name] for row in rows}) > 1]
    best: dict[tuple[Value, ...], Mapping[str, Value]] = {}
    for row in rows:
        if row["feasible"] and row["lossless"] and not row["bound"] and row["tpot_mean_ns"] is not None:
            place = tuple(row[name] for name in varying)
            if place not in best or _tpot(row) < _tpot(best[place]):
                best[place] = row
    table = Table(box=None, pad_edge=False, title="The fastest lossless policy that fits", title_justify="left")
    for name in varying:
        table.add_column(PLACE[name], overflow="fold")
    for column in ("policy", "cache", "TPOT"):
        table.add_column(column, overflow="fold", justify="left" if column == "policy" else "right")
    for row in best.values():
        table.add_row(
            *(escape(quantity(name, row[name])) for name in varying), escape(str(row["policy"])),
            share(row["cache_fraction"]), milliseconds(row["tpot_mean_ns"]),
        )
    out.print(table)
    out.print(f"{len(rows)} runs in {seconds:.0f} s; report: {page}", soft_wrap=True)


def _tpot(row: Mapping[str, Value]) -> float:
    value = row["tpot_mean_ns"]
    assert isinstance(value, float)
    return value
