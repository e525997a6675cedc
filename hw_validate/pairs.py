"""Which tokens each executed expert serves: the kernels' work lists, made before the clock starts.

A pair is `token * top_k + choice`, the token counted within its step. Where a policy executes what the router chose,
the router's choice says it; where it executes predictions, the ranking that it read does.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moesim.decision import Decision
from moesim.events import Step
from moesim.trace import Trace

Pairs = dict[int, Sequence[int]]
"""Expert, numbered `layer * experts + expert`, to its pairs."""


def pairs_of_events(
    trace: Trace, steps: Iterable[Step], decisions: Sequence[Decision], predictor: str | None
) -> Iterator[Pairs]:
    """The pairs of every event, in order. `predictor` names the ranking that a speculating policy executes."""
    made = iter(decisions)
    for step in steps:
        chosen = trace.experts[step.rows].tolist()
        foreseen = trace.predicted[predictor].ranking[step.rows, :, : trace.top_k].tolist() if predictor else None
        for layer in range(step.layers):
            decision = next(made)
            speculates = foreseen is not None and not decision.needs_true_ids
            yield _pairs(decision, foreseen if speculates else chosen, layer, trace)


def _pairs(decision: Decision, table: Any, layer: int, trace: Trace) -> Pairs:
    base, top_k, absent = layer * trace.n_experts, trace.top_k, trace.absent
    executed = {expert for wave in decision.waves for expert in wave.execute}
    served: dict[int, list[int]] = {expert: [] for expert in executed}
    for token, layers in enumerate(table):
        for choice, expert in enumerate(layers[layer][:top_k]):
            if expert != absent and base + expert in served:
                served[base + expert].append(token * top_k + choice)
    return dict(served)
