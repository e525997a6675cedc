"""The model drafts for itself with its experts in low precision, all of them resident (MoE-SpeQ, arXiv 2511.14102).

    before a decode step: the draft decodes `k` tokens, and its routers name the experts of the `k` tokens that it reads
    of each pass: copy whoever is named and not resident, layer by layer; who finds no slot waits and is copied as
                  layers finish, until its own begins
    the step:     the model runs the k + 1 tokens at once and keeps the drafts up to the first wrong one, and one more

Attention, routers, shared experts and KV are the model's own, so the draft costs its experts' bytes, which come off the
cache. A draft is right with probability `acceptance` (or `by_position`: p_1/p_2/...). Whom it names is right with the
recall of `predictor`; one recorded as NAME-1, NAME-2, ... by place in the draft is given as NAME (`self-draft`).
"""

from collections.abc import Sequence
from typing import cast, get_args

import numpy as np

from moesim.draft.acceptance import acceptance as drawn
from moesim.errors import ConfigError, nearest
from moesim.events import DECODE, Step
from moesim.model import Precision
from moesim.policies.foresight import SYNTHETIC, foresight
from moesim.policies.registry import register
from moesim.policies.roles import Draft
from moesim.trace import Trace

MOST_TOKENS = 64
"""A draft beyond this is a slip of the pen, and would need a verification step larger than any in use."""


@register("draft", "self-draft")
class SelfDraft(Draft):
    """Draft `k` tokens before every decode step."""

    def __init__(
        self,
        k: int = 4,
        acceptance: float = 0.9,
        by_position: str = "",
        predictor: str = "synthetic[recall=0.909]",
        precision: str = "int4",
        seed: int = 0,
    ) -> None:
        if not 0 <= k <= MOST_TOKENS:
            raise ConfigError(f"policy: draft[k={k}]: must be 0 to {MOST_TOKENS}")
        if precision not in get_args(Precision):
            raise ConfigError(f"policy: draft[precision={precision}]: {nearest(precision, get_args(Precision))}")
        self.longest = k
        self.precision = cast(Precision, precision)
        self.acceptance = drawn(acceptance, by_position, seed)
        synthetic = predictor.partition("[")[0] == SYNTHETIC
        names = [predictor] * k if synthetic else [f"{predictor}-{place}" for place in range(1, k + 1)]
        self._foresight = [foresight(name) for name in names]
        self.reads_ahead = synthetic and k > 0

    def check(self, trace: Trace) -> None:
        decoding = trace.step[trace.phase[:] == DECODE]
        if self.longest and (np.diff(decoding) == 0).any():
            raise ConfigError("policy: a draft is verified for one sequence, but the trace decodes batches")
        for each in self._foresight:
            each.check(trace, trace.top_k, 0)

    def prepare(self, layers: int, experts: int) -> None:
        self._experts = experts

    def length(self) -> int:
        return self.longest

    def accepted(self, request: int, position: int, drafted: int) -> int:
        return self.acceptance.accepted(request, position, drafted)

    def named(self, step: Step, number: int) -> Sequence[int]:
        token, foresees = step.token(number), self._foresight[number]
        return [
            layer * self._experts + expert
            for layer in range(step.layers)
            for expert in foresees.ranking(token, layer, step.top_k)
        ]
