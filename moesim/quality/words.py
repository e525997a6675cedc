"""A quality file as a table for people."""

import json
import sys

from rich.console import Console
from rich.table import Table

from moesim.quality.stored import Interval, Measured, Quality


def print_quality(quality: Quality) -> None:
    """One line per mode, with 95 % intervals."""
    text = quality.text
    # Beyond a terminal lines are not broken, for whoever searches them.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(
        f"{quality.model} ({quality.weights_sha256[:12]}…), {text.tokens_measured:,} tokens of {text.source} measured",
        highlight=False, markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("mode", "cache", "perplexity", "increase, %", "KL, nats", "same top-1, %", "in full, %"):
        table.add_column(name, justify="left" if name == "mode" else "right", overflow="fold")
    for each in quality.measured:
        table.add_row(*(
            cell.replace("[", r"\[") for cell in (
                mode_words(each),
                "–" if each.cache_fraction is None else f"{100 * each.cache_fraction:.3g} %",
                f"{each.perplexity.value:.4g}",
                _spread(each.perplexity_increase, 100, "+.2f"),
                _spread(each.kl_nats, 1, ".4f"),
                _spread(each.top1_agreement, 100, ".1f"),
                "–" if each.weight_executed is None else f"{100 * each.weight_executed:.1f}",
            )
        ))
    console.print(table)
    for reason in quality.left_out:
        console.print(f"left out: {reason}", highlight=False, markup=False)


def mode_words(measured: Measured) -> str:
    """The mode as one writes a policy: `speculate-and-execute[predictor=residual]`; how it was run, if that differs."""
    arguments = {key: value if isinstance(value, str) else json.dumps(value) for key, value in measured.variant.items()}
    if measured.predictor is not None:
        arguments = {"predictor": measured.predictor, **arguments}
    inside = ",".join(f"{key}={value}" for key, value in arguments.items())
    if measured.mode == "true":
        return "true routing" if measured.passes == "whole" else "true routing, token by token"
    return f"{measured.mode}[{inside}]" if inside else measured.mode


def _spread(interval: Interval, scale: float, form: str) -> str:
    value, low, high = (format(scale * each, form) for each in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"
