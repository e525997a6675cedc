"""The page: one file that needs nothing else. All text from data is escaped by the template engine."""

import base64
import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from moesim.catalogue import names
from moesim.errors import InputError
from moesim.hardware import HardwareSpec
from moesim.report.findings import Comparison, comparisons, headline
from moesim.report.rows import Results, Row, kind
from moesim.report.words import CLASSES, gigabytes_per_s, increase, milliseconds, percent, policy_words

CAPTIONS = {
    "time-by-policy": (
        "Where a token's time goes",
        "Each instant belongs to the first class that applies, so the bars add up to the time per output token "
        "exactly. The thick mark is the least time that the link needs for the bytes that this policy moves.",
    ),
    "cache-size": (
        "What a larger cache buys",
        "Hits count experts that an earlier token left in the cache, not those that a prefetch has just brought. "
        "Dotted: bounds. Dashed: lossy.",
    ),
    "pareto": (
        "Speed and what it costs",
        "Perplexity of held-out text under each lossy policy, less the true model's, measured by running the model; "
        "lossless policies cost nothing. Bars are 95 % intervals. On the line nothing else is both faster and cheaper.",
    ),
    "misses": (
        "Why experts were missing",
        "A bad policy shows as misses that offline-optimal eviction would have hit; a working set that cannot fit "
        "shows as misses that it has too.",
    ),
    "timeline": ("A few layers of one token", "Host, GPU and link on one time scale, in steady decoding."),
    "bandwidth": (
        "Which lossless policy wins on which link",
        "The winner's time per output token in each cell, and its lead over the second.",
    ),
    "context": (
        "Longer contexts, and published times",
        "Bands are the interval that the ranges of the hardware's figures give; diamonds are published measurements.",
    ),
    "load": (
        "Waiting and throughput under load",
        "Solid: means. Dotted: 99th percentiles. Where a line of the last panel leaves the dashed one, requests come "
        "faster than they are served, and how long they wait depends on how many come.",
    ),
}


def render(results: Results, pictures: dict[str, bytes]) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("moesim.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = results.rows[0]
    return environment.get_template("page.html").render(
        title=results.sweep.get("title") or results.sweep.get("name", "moesim"),
        headline=headline(results),
        figures=[
            {
                "name": name,
                "title": CAPTIONS[name][0],
                "caption": CAPTIONS[name][1],
                "data": base64.b64encode(svg).decode(),
            }
            for name, svg in pictures.items()
        ],
        comparisons=[
            {
                "policy": policy_words(each.policy),
                "context": "as recorded" if each.context_tokens is None else f"{each.context_tokens:,}",
                "published": milliseconds(each.published_ns),
                "ours": milliseconds(each.row["tpot_mean_ns"]),
                "interval": _interval(each.row),
                "difference": f"{each.difference_ns / 1e6:+.1f} ms ({each.difference_ns / each.published_ns:+.1%})",
                "inside": {True: "inside", False: "outside", None: "–"}[each.inside],
                "parts": [
                    f"{words} {milliseconds(each.row[f'tpot_{name}_ns'])}" for name, (words, _) in CLASSES.items()
                ],
                "copies": _beside(each, ("exposed_copy",), each.published_copies),
                "compute": _beside(each, ("attention", "experts"), each.published_compute),
                "source": each.source,
            }
            for each in comparisons(results)
        ],
        columns=[name for name in COLUMNS if name != COST or results.knows_costs],
        table=[_table_row(row, results) for row in results.rows],
        grids=list(dict.fromkeys(row["grid"] for row in results.rows)),
        profiles=[_profile(name) for name in dict.fromkeys(row["hardware"] for row in results.rows)],
        basis=_basis(results, first),
    )


COST = "perplexity"
COLUMNS = (
    "grid",
    "policy",
    "kind",
    "cache",
    "link",
    "context",
    "time per token",
    "interval",
    "waiting for copies",
    "hits",
    "kept hits",
    "weight executed",
    COST,
    "copied per token",
    "time to first token",
    "GPU memory",
)


def _table_row(row: Row, results: Results) -> list[dict[str, Any]]:
    """One run: what is shown, and what is sorted by."""

    def cell(shown: str, by: float | str | None) -> dict[str, Any]:
        return {"shown": shown, "by": by if by is not None else ""}

    def number(name: str, form: Any) -> dict[str, Any]:
        value = row[name]
        return cell("–" if value is None else form(value), value)

    memory = f"{row['vram_bytes'] / 1e9:.1f} GB" + ("" if row["feasible"] else ", does not fit")
    return [
        cell(row["grid"], row["grid"]),
        cell(policy_words(row["policy"]), row["policy"]),
        cell(kind(row), kind(row)),
        number("cache_fraction", percent),
        number("link_bytes_per_s", gigabytes_per_s),
        number("context_tokens", lambda tokens: f"{tokens:,}"),
        number("tpot_mean_ns", milliseconds),
        cell(_interval(row), row["tpot_fast_ns"]),
        number("tpot_exposed_copy_ns", milliseconds),
        number("hit_rate", lambda share: percent(round(share, 3))),
        number("resident_hit_rate", lambda share: percent(round(share, 3))),
        number("weight_executed", lambda share: percent(round(share, 3))),
        *([_cost(row, results)] if results.knows_costs else []),
        number("bytes_per_token", lambda size: f"{size / 1e9:.2f} GB"),
        number("ttft_mean_ns", milliseconds),
        cell(memory, row["vram_bytes"]),
    ]


def _cost(row: Row, results: Results) -> dict[str, Any]:
    """What a policy does to the perplexity of held-out text, with its interval."""
    cost = results.cost(row)
    if row["lossless"]:
        return {"shown": "as it is", "by": 0}
    if cost is None:
        return {"shown": "not measured", "by": ""}
    whose = ", of another model" if results.is_another_model(row["trace"]) else ""
    shown = f"{increase(cost.value)} ({increase(cost.low)} to {increase(cost.high)}){whose}"
    return {"shown": shown, "by": cost.value}


def _beside(each: Comparison, classes: tuple[str, ...], published: tuple[float, float] | None) -> str:
    """Our share of some classes of the named sum, and the published range of it."""
    ours = sum(each.row[f"tpot_{name}_ns"] for name in classes) / each.row["tpot_mean_ns"]
    if published is None:
        return percent(round(ours, 3))
    return f"{percent(round(ours, 3))} (published {100 * published[0]:.3g} – {percent(published[1])})"


def _interval(row: Row) -> str:
    if row["tpot_fast_ns"] is None or row["tpot_slow_ns"] is None:
        return "–"
    return f"{row['tpot_fast_ns'] / 1e6:,.1f} – {row['tpot_slow_ns'] / 1e6:,.1f} ms"


def _profile(name: str) -> dict[str, Any]:
    """A machine's figures with their ranges and sources; without them if the profile is not found any more."""
    if name not in names("hardware"):
        return {"title": name, "figures": []}
    try:
        spec = HardwareSpec.load(name)
    except InputError:
        return {"title": name, "figures": []}
    figures = []
    for key, quantity in spec.figures.items():
        unit, scale = _unit(key)
        spread = (
            "" if quantity.low == quantity.high else f" ({quantity.low / scale:,.4g} – {quantity.high / scale:,.4g})"
        )
        words = key.removesuffix("_bytes_per_s").removesuffix("_per_s").removesuffix("_bytes").removesuffix("_ns")
        figures.append(
            {
                "name": words.replace("_", " "),
                "value": f"{quantity.value / scale:,.4g}{spread} {unit}".strip(),
                "source": quantity.source,
            }
        )
    return {"title": f"{spec.title}, {spec.link}", "figures": figures}


def _unit(key: str) -> tuple[str, float]:
    for suffix, unit, scale in (
        ("_bytes_per_s", "GB/s", 1e9),
        ("flops_per_s", "TFLOP/s", 1e12),
        ("_bytes", "GB", 1e9),
        ("_ns", "µs", 1e3),
    ):
        if key.endswith(suffix):
            return unit, scale
    return "", 1.0


def _basis(results: Results, first: Row) -> list[tuple[str, str]]:
    """What the numbers rest on."""

    def all_of(column: str) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(row[column] for row in results.rows))

    synthetic = any(row["synthetic"] for row in results.rows)
    configuration = json.loads(first["configuration"])
    costs = [
        (
            "perplexity",
            f"{trace}: {quality.text.tokens_measured:,} tokens of {quality.text.source} decoded teacher-forced, "
            f"weights {quality.weights_sha256[:12]}, {quality.method.description}; speculation in closed loop"
            + (", of another model of this shape than the trace's" if results.is_another_model(trace) else ""),
        )
        for trace, quality in results.quality.items()
        if results.knows_costs
    ]
    return [
        (
            "trace",
            all_of("trace") + (" – synthetic routing, not a model's" if synthetic else " – recorded from a model"),
        ),
        ("model", all_of("model")),
        ("engine", all_of("engine")),
        ("tokens", f"{configuration['warmup_tokens']} decoded to warm up, {all_of('tokens_measured')} measured"),
        ("kernel times", all_of("kernel_times")),
        (
            "speculation",
            "predictions are those recorded from true states (open loop): errors do not compound as in decoding",
        ),
        (
            "interval",
            "all figures of the machine at their fast end, and all at their slow end: a worst case, not a deviation",
        ),
        *costs,
        ("trace hash", all_of("trace_hash")),
        ("moesim", all_of("moesim_version")),
    ]
