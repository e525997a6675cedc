"""A self-draft whose length a governor chooses before every step (MoE-SpeQ, arXiv 2511.14102).

    k* = argmax of tokens(k) / T_cycle(k) over `shortest` to `longest`, within `slo_ms` if it is given

moesim/draft/governor.py has the terms. It knows the machine by the centre's figures alone and the cache by what past
steps brought, so it decides without a clock, and one list of lengths serves every clock of the run.
"""

from moesim.draft.costs import CycleCosts
from moesim.draft.governor import Governor
from moesim.errors import ConfigError, nearest
from moesim.policies.draft.self_draft import SelfDraft
from moesim.policies.registry import register

COUNTS = ("kept", "accepted")


@register("draft", "governed-draft")
class GovernedDraft(SelfDraft):
    """Draft as many tokens as pay."""

    governed = True

    def __init__(
        self,
        shortest: int = 1,
        longest: int = 8,
        acceptance: float = 0.9,
        by_position: str = "",
        predictor: str = "synthetic[recall=0.909]",
        precision: str = "int4",
        seed: int = 0,
        smoothing: float = 0.1,
        counts: str = "kept",
        slo_ms: float = 0.0,
    ) -> None:
        super().__init__(longest, acceptance, by_position, predictor, precision, seed)
        if not 0 <= shortest <= longest:
            raise ConfigError(f"policy: governed-draft[shortest={shortest}]: must be 0 to longest={longest}")
        if not 0 < smoothing <= 1:
            raise ConfigError(f"policy: governed-draft[smoothing={smoothing:g}]: must be above 0, at most 1")
        if counts not in COUNTS:
            raise ConfigError(f"policy: governed-draft[counts={counts}]: {nearest(counts, COUNTS)}")
        if slo_ms < 0:
            raise ConfigError(f"policy: governed-draft[slo_ms={slo_ms:g}]: must be 0 (none) or more")
        self._shortest = shortest
        self._smoothing = smoothing
        self._counts = counts
        self._slo_ms = slo_ms

    def governor(self, costs: CycleCosts, experts_per_token: int) -> Governor:
        return Governor(
            costs, self._shortest, self.longest, first_brought=experts_per_token, smoothing=self._smoothing,
            counts_own_token=self._counts == "kept",
            objective_ns=round(self._slo_ms * 1e6) if self._slo_ms else None,
        )
