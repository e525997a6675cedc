"""Experts in several copies, one server each: allotment of slots and what it does to a layer's time.

Expert replication (arXiv 2605.11537): a predictor foresees, for batch i + 1 while batch i runs, how many tokens each
expert of a layer will get. Every predicted expert has one slot; the rest of the layer's slots go to predicted experts
in proportion to their tokens, and the tokens of an expert are spread over its copies. An expert with c copies is then a
queue with c servers, and a layer takes as long as its slowest server.

To the cache a copy is an expert of its own: copy c of expert e of a layer with E experts has the number c * E + e.
"""

from collections import Counter
from collections.abc import Mapping

from moesim.events import DECODE, Step
from moesim.policies.foresight import Synthetic


def allotted(tokens: Mapping[int, int], slots: int, most: int) -> dict[int, int]:
    """Copies of each expert, given its tokens: one each, the heaviest first while slots last, then in proportion.

    Proportion is by largest remainders, ties to the lower number. No expert has more copies than tokens, or than
    `most`; what that leaves over is allotted again among the others. Fewer slots than experts leave the lightest out.
    """
    order = sorted(tokens, key=lambda expert: (-tokens[expert], expert))[:slots]
    copies = dict.fromkeys(order, 1)
    left = slots - len(order)
    while left:
        growing = [expert for expert in order if copies[expert] < min(most, tokens[expert])]
        if not growing:
            break
        total = sum(tokens[expert] for expert in growing)
        quota = {expert: divmod(left * tokens[expert], total) for expert in growing}
        rest = left - sum(whole for whole, _ in quota.values())
        rounded_up = set(sorted(growing, key=lambda expert: (-quota[expert][1], expert))[:rest])
        for expert in growing:
            wanted = quota[expert][0] + (expert in rounded_up)
            given = min(wanted, min(most, tokens[expert]) - copies[expert])
            copies[expert] += given
            left -= given
    return copies


def spread(tokens: int, copies: int) -> list[int]:
    """An expert's tokens over its copies, as evenly as whole tokens allow."""
    return [tokens // copies + (copy < tokens % copies) for copy in range(copies)]


class BatchForecast:
    """What is foreseen of a batch while the one before it runs. Of a single sequence's next token nothing is."""

    def __init__(self, recall: float, seed: int, most_copies: int) -> None:
        self._foresight = Synthetic(str(recall), seed)
        self._most_copies = most_copies
        self.slots = 0
        """Of each layer."""

    def foresees(self, step: Step) -> bool:
        """Whether the step is a batch that runs behind another."""
        return step.phase == DECODE and step.tokens > 1 and step.follows_batch

    def choices(self, step: Step, layer: int) -> list[list[int]]:
        """The predicted experts of each token."""
        return self._foresight.by_token(step, layer, step.top_k)

    def tokens_of_copies(self, step: Step, layer: int) -> dict[int, int]:
        """The tokens of every copy that is to have a slot, by number within the layer: first copies first."""
        tokens = Counter(expert for choice in self.choices(step, layer) for expert in choice)
        copies = allotted(tokens, max(self.slots, len(tokens)), self._most_copies)
        shares = {expert: spread(tokens[expert], copies[expert]) for expert in tokens}
        return {
            copy * step.experts + expert: share[copy]
            for copy in range(max(copies.values()))
            for expert, share in shares.items()
            if copy < len(share)
        }
