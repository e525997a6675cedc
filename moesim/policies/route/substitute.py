"""Substitute (a miss rule of SpecMD, arXiv 2602.03921): the best resident stands in for a missing expert.

    execute the token's true experts that are resident; for each that is not, the resident with the highest score
    among those not chosen; fetch, in the router's order, only if no resident is left

It is `max-rank` without a top-J and without a worst rank. The paper says no more than the name [open].
"""

from moesim.policies.registry import register
from moesim.policies.route.max_rank import MaxRank


@register("route", "substitute")
class Substitute(MaxRank):
    """Any resident is better than a copy."""

    def __init__(self) -> None:
        super().__init__(keep=0, rank=1 << 30)
