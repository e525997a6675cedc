"""Max-rank (cache-conditional experts, arXiv 2412.00099).

    keep the token's true top-J; fill up to top-k with residents of rank M or better, best first;
    where those do not suffice, with the rest in the router's order

J is `keep`. M is `rank`; the paper tunes it, by default it is twice the top-k here.
"""

from moesim.errors import ConfigError
from moesim.events import Scores
from moesim.policies.registry import register
from moesim.policies.route.re_route import ReRoute


@register("route", "max-rank")
class MaxRank(ReRoute):
    """Residents of a good enough rank stand in for missing experts."""

    def __init__(self, keep: int = 1, rank: int | None = None) -> None:
        if keep < 0 or (rank is not None and (not isinstance(rank, int) or rank < 1)):
            raise ConfigError(f"policy: max-rank[keep={keep},rank={rank}]: expected keep from 0 and rank from 1")
        self._keep = keep
        self._rank = rank

    def worst_rank(self, order: list[int], scores: Scores, count: int) -> int:
        """How many ranks a resident may be chosen from."""
        return 2 * count if self._rank is None else self._rank

    def choose(
        self, layer: int, order: list[int], scores: Scores, resident: list[bool], count: int
    ) -> list[int]:
        kept = min(self._keep, count)
        worst = self.worst_rank(order, scores, count)
        residents = [expert for expert in order[kept:worst] if resident[expert]][: count - kept]
        chosen = {*order[:kept], *residents}
        for expert in order[kept:]:
            if len(chosen) == count:
                break
            chosen.add(expert)
        return [expert for expert in order if expert in chosen]
