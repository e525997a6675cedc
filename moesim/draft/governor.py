"""How many tokens to draft: the length that yields most tokens for its time (MoE-SpeQ, arXiv 2511.14102).

    rate(k)    = tokens(k) / T_cycle(k)
    tokens(k)  = sum over i <= k of p_1 ... p_i
    T_cycle(k) = max(T_draft(k), T_pcie,init(k)) + T_pcie,new(k) + T_verify(k + 1)
    T_pcie     = T_0 + experts * S/B, nothing where no expert is to be copied
    k*         = argmax of rate(k) over k_min .. k_SLO, the shorter of equals

k_SLO is the longest k whose cycle ends within the objective. Left open by the source, and read here so: the sum begins
at i = 0, for the model's own token is kept too (`counts=accepted` begins at 1, and then never prefers k = 0);
T_pcie,init are the copies named before the draft's last pass, which that pass hides; T_pcie,new the copies of whom the
last pass names and of the last token, whom nothing names. Both counts and every p_j are moving averages of what past
steps showed, by place in the step; a place not seen yet is taken to be like the one before it, and p_1 begins at 0.9.
A governor that may choose k = 0 learns nothing of drafts while it does, so the shortest k is 1 unless it is set.
"""

from moesim.draft.costs import CycleCosts

FIRST_RIGHT = 0.9
"""p_1 before any draft was judged: of the order that the paper reports."""


class Governor:
    """Learns from every step and chooses the next one's draft length."""

    def __init__(
        self, costs: CycleCosts, shortest: int, longest: int, *, first_brought: int, smoothing: float = 0.1,
        counts_own_token: bool = True, objective_ns: int | None = None,
    ) -> None:
        """`first_brought`: experts that a token is taken to need copied before any was seen."""
        self._costs = costs
        self._shortest = shortest
        self._longest = longest
        self._smoothing = smoothing
        self._first = 1 if counts_own_token else 0
        self._objective_ns = objective_ns
        self._first_brought = float(first_brought)
        self._right: list[float] = []
        """p_j by j - 1, as far as seen."""
        self._brought: list[float] = []
        """New experts of the step's tokens in turn, as far as seen."""

    def tokens(self, length: int) -> float:
        """Tokens that a cycle of this draft length is expected to yield."""
        total, product = float(self._first), 1.0
        for place in range(length):
            product *= self._at(self._right, place, FIRST_RIGHT)
            total += product
        return total

    def cycle_ns(self, length: int) -> float:
        """T_cycle."""
        brought = [self._at(self._brought, place, self._first_brought) for place in range(length + 1)]
        hidden = sum(brought[: max(0, length - 1)])
        drafting = length * self._costs.draft_pass_ns
        behind = self._copies_ns(sum(brought) - hidden)
        return max(drafting, self._copies_ns(hidden)) + behind + self._costs.verify_ns[length]

    def choose(self) -> int:
        """k*."""
        best, best_rate = self._shortest, -1.0
        for length in range(self._shortest, self._longest + 1):
            cycle_ns = self.cycle_ns(length)
            if length > self._shortest and self._objective_ns is not None and cycle_ns > self._objective_ns:
                break
            rate = self.tokens(length) / cycle_ns
            if rate > best_rate:
                best, best_rate = length, rate
        return best

    def learn(self, drafted: int, accepted: int, brought: list[int]) -> None:
        """A step has run: how many drafts were right, and the new experts of each of its tokens in turn.

        Drafts behind the first wrong one were not judged.
        """
        for place in range(min(drafted, accepted + 1)):
            # One draw says little of a probability: a new place starts from the one before it.
            if place == len(self._right):
                self._right.append(self._at(self._right, place, FIRST_RIGHT))
            self._average(self._right, place, 1.0 if place < accepted else 0.0)
        for place, experts in enumerate(brought):
            if place == len(self._brought):
                self._brought.append(float(experts))
            self._average(self._brought, place, float(experts))

    def _copies_ns(self, experts: float) -> float:
        return self._costs.copy_start_up_ns + experts * self._costs.copy_ns if experts else 0.0

    def _at(self, seen: list[float], place: int, first: float) -> float:
        return seen[min(place, len(seen) - 1)] if seen else first

    def _average(self, seen: list[float], place: int, value: float) -> None:
        seen[place] += self._smoothing * (value - seen[place])
