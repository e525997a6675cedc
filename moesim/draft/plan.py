"""The draft lengths of a window, chosen step by step by a governor, once for all the clocks that will time them."""

from functools import lru_cache

from moesim.decide import Decider
from moesim.draft.costs import CycleCosts
from moesim.draft.verification import verification_steps
from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.policies.composition import parse
from moesim.window import Window, load_trace


@lru_cache(maxsize=8)
def governed_lengths(window: Window, costs: CycleCosts) -> tuple[int, ...]:
    """How many tokens are drafted before each decode step of the window.

    Raises:
        ConfigError: the policy evicts by the future, which depends on these very lengths.
    """
    trace, policy = load_trace(window.path), parse(window.policy)
    if policy.oracle:
        raise ConfigError(f"policy {policy.name!r}: an oracle cannot know what a governed draft will verify")
    decider = Decider(
        policy, trace.layers, trace.n_experts, window.capacity, largest_event=window.largest,
        stream_prefill=window.stream_prefill, costs=window.costs,
    )
    governor = policy.draft.governor(costs, trace.layers * trace.top_k)
    lengths: list[int] = []

    def choose() -> int:
        lengths.append(governor.choose())
        return lengths[-1]

    for step in verification_steps(trace, window.stop, choose, policy.draft.accepted):
        brought = new_experts(decider, step) if step.phase == DECODE else []
        decider.begin(step)
        for number in range(step.drafted):
            decider.foresee(step, number)
        for layer in range(step.layers):
            decider.decide(step, layer)
            decider.finish(layer)
        if step.phase == DECODE:
            governor.learn(step.drafted, step.kept - 1, brought)
    return tuple(lengths)


def new_experts(decider: Decider, step: Step) -> list[int]:
    """For each token of a step to come, how many experts neither are resident nor were chosen by a token before it."""
    seen: set[int] = set()
    brought = []
    for number in range(step.drafted + 1):
        before = len(seen)
        for layer, chosen in enumerate(step.token(number).accesses):
            numbered = (layer * decider.experts + expert for expert in chosen)
            seen.update(expert for expert in numbered if not decider.is_present(expert))
        brought.append(len(seen) - before)
    return brought
