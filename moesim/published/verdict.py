"""When a measured value agrees with a published one: by direction or within a stated tolerance, never by eye."""

from collections.abc import Sequence
from typing import Literal

from moesim.published.system import Claim, Tolerance

Verdict = Literal["agree", "contradict", "cannot be tested"]


def agrees(value: float, claim: Claim) -> bool:
    """Whether one measured value agrees with a claim.

    A direction: the ratio is under (less) or over (more) one by more than the tolerance, or within it (same). Numbers:
    the value lies in the published range, widened at both ends by the tolerance.
    """
    assert claim.tolerance is not None, "a claim that is tested has one"
    assert claim.published is not None, "and a published value"
    slack = claim.tolerance
    if isinstance(claim.published, str):
        margin = slack.relative + slack.absolute
        return {"less": value < 1 - margin, "more": value > 1 + margin, "same": abs(value - 1) <= margin}[
            claim.published
        ]
    low, high = claim.published if isinstance(claim.published, tuple) else (claim.published, claim.published)
    return low - _width(low, slack) <= value <= high + _width(high, slack)


def _width(end: float, slack: Tolerance) -> float:
    return abs(end) * slack.relative + slack.absolute


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim that was tested on several traces: it agrees if it holds on every one of them."""
    tested = [verdict for verdict in verdicts if verdict != "cannot be tested"]
    if not tested:
        return "cannot be tested"
    return "agree" if all(verdict == "agree" for verdict in tested) else "contradict"
