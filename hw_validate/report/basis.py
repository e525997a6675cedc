"""The answer in a few sentences, and what the numbers rest on."""

from collections.abc import Sequence

from hw_validate.agreement import TARGET_MEDIAN, TARGET_WORST, errors, grouped, outputs, ranking
from hw_validate.comparison import Row
from hw_validate.interval import RESAMPLES
from hw_validate.measurement import MachineFacts
from hw_validate.report.accuracy import GROUP, group_words
from hw_validate.report.section import Section
from hw_validate.report.words import cell_words, two_decimals
from moesim.report.words import percent


def headline(rows: Sequence[Row], machine: MachineFacts) -> list[str]:
    """Error, order, sameness, and what a reader must know before believing them."""
    found = errors(rows)
    cells = "one cell" if len(rows) == 1 else f"{len(rows)} cells"
    sentences = [
        f"Over {cells} on {machine_words(machine)}, the simulated time per step is off by "
        f"{two_decimals(found.median)} in the median and {two_decimals(found.worst)} at worst.",
        f"Targets: median at most {percent(TARGET_MEDIAN)}: {_met(found.median_met)}; worst at most "
        f"{percent(TARGET_WORST)}: {_met(found.worst_met)}. Worst: {cell_words(found.worst_row)}.",
    ]
    order = ranking(rows)
    if order.ordered:
        sentences.append(
            f"Of {order.ordered} pairs of policies whose measured intervals do not overlap, the simulation orders "
            f"{order.alike} as the machine does."
        )
    compared = [row for row in rows if row["sequences_identical"] is not None]
    if compared:
        same = sum(row["sequences_identical"] for row in compared)
        sentences.append(f"Decisions and executed experts are identical in {same} of {len(compared)} cells.")
    results = outputs(rows)
    if results.groups:
        sentences.append(
            f"Lossless policies compute the same bits in {results.groups - len(results.different)} of "
            f"{results.groups} settings."
        )
    if machine.device == "cpu":
        sentences.append("This is a rehearsal without a GPU: copies between host buffers, kernels on the processor.")
    throttled = sum(row["throttled"] for row in rows)
    if throttled:
        sentences.append(f"{throttled} of {len(rows)} runs were throttled; they are marked.")
    return sentences


def _met(met: bool) -> str:
    return "met" if met else "not met"


def machine_words(machine: MachineFacts) -> str:
    """What was measured on."""
    return machine.processor if machine.device == "cpu" else machine.gpu


def basis_section(rows: Sequence[Row], machine: MachineFacts) -> Section:
    """The machine, the models as they were run, and how the numbers were made."""
    gib = 2**30
    facts = [
        ("GPU", f"{machine.gpu}, {machine.gpu_memory_bytes / gib:,.0f} GiB" if machine.gpu else "none"),
        ("driver, CUDA, torch", ", ".join(each or "none" for each in (machine.driver, machine.cuda, machine.torch))),
        ("link", machine.link),
        ("processor", f"{machine.processor}, {machine.processors} used"),
        ("memory", f"{machine.memory_bytes / gib:,.0f} GiB"),
        ("operating system", machine.operating_system),
        ("measured at", machine.measured_at),
        ("models", "; ".join(group_words(group[0]) for group in grouped(rows, GROUP).values())),
        ("context", f"{_all(rows, 'context_tokens')} tokens per sequence, the same at every step"),
        ("steps", f"{_all(rows, 'warmup_steps')} to warm up, {_all(rows, 'steps_measured')} measured"),
        (
            "interval",
            f"95 % bootstrap of the mean, {RESAMPLES:,} resamples of blocks of consecutive steps, because neighbouring "
            "tokens choose similar experts; the blocks' length follows from that similarity",
        ),
        ("time classes", "measured on further, instrumented steps: the bare steps that count carry no timestamps"),
        ("simulation", "from a hardware profile of microbenchmarks on this machine; fitted to none of these times"),
    ]
    return Section("What the numbers rest on", "The machine as it was found.", facts=facts)


def _all(rows: Sequence[Row], column: str) -> str:
    return ", ".join(f"{value:,}" for value in sorted({row[column] for row in rows}))
