"""docs/published.md: claims, what was published, what ours is, and the verdict; and the same for a script."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from moesim.published.reproduce import Outcome, Reproduced, Tested
from moesim.published.system import Claim
from moesim.published.traces import TraceSources

VERDICTS = ("agree", "contradict", "cannot be tested")
INTRODUCTION = """# What papers report, and what comes out here

Written by `moesim reproduce`; the claims, the runs that they compare and the tolerances are data in
[configs/published](../configs/published), the traces in
[configs/published-traces.yaml](../configs/published-traces.yaml). Nothing is tuned to match: a claim is tested in
direction or as a ratio, with our machines' frozen profiles, and the published figure stands beside ours either way.

- **agree**: on every trace on which it was tested, the direction is the published one, or the value lies in the
  published range, widened by a tolerance that the claim states with its reason.
- **contradict**: on at least one trace it does not. Below the table stands why, as far as the runs show it.
- **cannot be tested**: something is missing, and the table says what.
- *not verified* behind a claim's source: its figure or wording is quoted at second hand and was not checked against the
  paper.

What a paper measured on another model, card or text than ours is a claim about that setting. A contradiction here says
that it did not carry over to this one, and neither that it was wrong there.
"""


def page(results: Sequence[Reproduced], sources: TraceSources) -> str:
    """The whole page, as Markdown."""
    return "\n".join([INTRODUCTION, *_counts(results), *_traces(results, sources), *map(_section, results)]) + "\n"


def as_data(results: Sequence[Reproduced]) -> list[dict[str, Any]]:
    """The same as plain values."""
    return [
        {
            "system": each.name,
            "title": each.system.title,
            "source": each.system.source,
            "setting": each.system.setting,
            "claims": [
                {
                    **tested.claim.model_dump(mode="json", exclude_none=True),
                    "verdict": tested.verdict,
                    "outcomes": [
                        {"trace": o.trace, "value": o.value, "verdict": o.verdict, "reason": o.reason}
                        for o in tested.outcomes
                    ],
                }
                for tested in each.tested
            ],
        }
        for each in results
    ]


def counts(results: Sequence[Reproduced]) -> Counter[str]:
    """How many claims have which verdict."""
    return Counter(tested.verdict for each in results for tested in each.tested)


def _counts(results: Sequence[Reproduced]) -> Iterator[str]:
    yield "| system | " + " | ".join(VERDICTS) + " |"
    yield "|---" * (1 + len(VERDICTS)) + "|"
    for each in results:
        found = counts([each])
        link = f"[{each.system.title}](#{_anchor(each.system.title)})"
        yield f"| {link} | " + " | ".join(str(found[verdict]) for verdict in VERDICTS) + " |"
    found = counts(results)
    yield "| **all** | " + " | ".join(f"**{found[verdict]}**" for verdict in VERDICTS) + " |\n"


def _anchor(title: str) -> str:
    """What a Markdown renderer makes of a heading."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def _traces(results: Sequence[Reproduced], sources: TraceSources) -> Iterator[str]:
    used = {o.trace for each in results for tested in each.tested for o in tested.outcomes if o.value is not None}
    yield "## The traces\n"
    yield "| trace | stands for | what it is |"
    yield "|---|---|---|"
    for name, source in sorted(sources.traces.items()):
        if name in used:
            yield f"| `{name}` | {source.model} | {source.words} |"
    yield ""


def _section(result: Reproduced) -> str:
    system = result.system
    lines = [
        f"## {system.title}\n", f"{system.source}. {system.setting}\n",
        "| claim | published | ours | verdict |", "|---|---|---|---|",
    ]
    for tested in result.tested:
        claim = tested.claim
        says = f"<a id=\"{result.name}-{claim.id}\"></a>{_cell(claim.says)} ({_cell(claim.source)})"
        lines.append(f"| {says} | {_published(claim)} | {_ours(tested)} | {_verdict(tested)} |")
    lines.append("")
    for tested in result.tested:
        if tested.verdict == "contradict":
            why = tested.claim.why or "Why is not known."
            lines.append(f"- **{_plain(tested.claim.says)}** {why.strip()}")
    reasons = [f"- {_plain(t.claim.says)} Within {_slack(t.claim)}: {t.claim.tolerance.because.strip()}."
               for t in result.tested if t.claim.tolerance is not None]
    if reasons:
        lines += ["", "<details><summary>Tolerances</summary>", "", *reasons, "", "</details>"]
    lines.append("")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _verdict(tested: Tested) -> str:
    if tested.verdict != "cannot be tested":
        return tested.verdict
    return "cannot be tested: " + "; ".join(dict.fromkeys(_cell(o.reason) for o in tested.outcomes))


def _ours(tested: Tested) -> str:
    shown = [o for o in tested.outcomes if o.value is not None]
    if not shown:
        return "–"
    mixed = len({o.verdict for o in shown}) > 1
    return "; ".join(_outcome(tested.claim, o, mixed) for o in shown)


def _outcome(claim: Claim, outcome: Outcome, mixed: bool) -> str:
    assert outcome.value is not None, "only these are shown"
    note = f", {outcome.verdict}s" if mixed else ""
    return f"{number(claim, outcome.value)} (`{outcome.trace}`{note})"


def _published(claim: Claim) -> str:
    if claim.as_published:
        return _cell(claim.as_published)
    if isinstance(claim.published, tuple):
        return f"{number(claim, claim.published[0])} to {number(claim, claim.published[1])}"
    if isinstance(claim.published, float):
        return number(claim, claim.published)
    return claim.published or "–"


def _slack(claim: Claim) -> str:
    assert claim.tolerance is not None, "asked for only then"
    parts = [f"{claim.tolerance.relative:.3g} of it"] if claim.tolerance.relative else []
    parts += [number(claim, claim.tolerance.absolute)] if claim.tolerance.absolute else []
    return " and ".join(parts) or "nothing"


def number(claim: Claim, value: float) -> str:
    """A value as its kind is read: ratios with ×, shares in per cent, nanoseconds as milliseconds."""
    if claim.kind == "count" and claim.metric is not None and claim.metric.endswith("_ns"):
        return f"{value / 1e6:,.1f} ms"
    if claim.kind == "share":
        return f"{100 * value:.1f} %"
    if claim.kind == "count":
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.3g}×" if abs(value) >= 10 else f"{value:.3f}×"
