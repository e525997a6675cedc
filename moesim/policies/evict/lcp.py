"""Lowest caching priority (LCP of MoEpic, arXiv 2509.08342).

    of an expert: μ uses, ν tokens since the last of them
    victim: the smallest μ·ρ^(ν/ω), with ρ = 0.25 and ω = 128; ties go to the least recently used

All priorities fall with every token, so a stored priority would be out of date at once. But they fall alike: with T
the present token and t the token of the last use, ν = T - t and

    log μ + ((T - t)/ω)·log ρ  =  (log μ + (t/ω)·log(1/ρ))  -  (T/ω)·log(1/ρ)

where the last term is the same for all experts. So the bracket, which changes only when the expert is used, puts
them in the same order at every T, and it is the key. The logarithm is taken to base 1/ρ, so that the key is
log μ + t/ω. Where ρ is 1/2, 1/4 or 1/16 and ω a power of 2, two priorities are equal only if μ/μ' is a power of
two, and then their keys are equal bit for bit; unequal ones lie far enough apart for a double.

The paper does not say whether uses before the last eviction count: `counts=ever` (default) or `insertion`. An expert
that is foreseen and was never used has priority 0.
"""

from math import frexp, inf, log2

from moesim.errors import ConfigError, nearest
from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "lcp")
class LCP(Evict):
    """Key: (log of μ to base 1/ρ plus t/ω, time of last use)."""

    def __init__(self, rho: float = 0.25, omega: float = 128.0, counts: str = "ever") -> None:
        if not 0 < rho < 1 or omega <= 0:
            raise ConfigError(f"policy: lcp[rho={rho:g},omega={omega:g}]: expected 0 < rho < 1 and omega > 0")
        if counts not in ("ever", "insertion"):
            raise ConfigError(f"policy: lcp[counts={counts}]: {nearest(counts, ('ever', 'insertion'))}")
        self._bits = -log2(rho)
        self._omega = omega
        self._forgets = counts == "insertion"
        self._token = 0
        self._clock = 0
        self._uses: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def on_step(self, step: Step) -> None:
        self._token += step.tokens

    def _key(self, expert: int) -> tuple[float, int]:
        self._clock += 1
        uses = self._uses.get(expert, 0)
        if uses == 0:
            return -inf, self._clock
        # μ = fraction · 2^exponent: equal priorities share the fraction, and the rest of the sum is exact.
        fraction, exponent = frexp(uses)
        return log2(fraction) / self._bits + (exponent / self._bits + self._last[expert] / self._omega), self._clock

    def on_hit(self, expert: int) -> tuple[float, int]:
        self._uses[expert] = self._uses.get(expert, 0) + 1
        self._last[expert] = self._token
        return self._key(expert)

    on_insert = on_hit

    def on_prefetch(self, expert: int) -> tuple[float, int]:
        return self._key(expert)

    def on_evict(self, expert: int) -> None:
        if self._forgets:
            self._uses.pop(expert, None)
