"""Routing built for an argument: every layer takes its experts in turn, and all sequences of a step agree.

Nothing like it is recorded, and it says so; but a worst case and a turning point need just this. One layer that goes
round one expert more than its share of the slots is what no fixed split stands; steps of t tokens on the same experts
are where copying an expert begins to beat executing it on the CPU.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import moesim
from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.trace import DECODE, Trace, TraceMetadata, id_dtype


class InTurn(BaseModel):
    """Its size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_layer: int = Field(ge=1)
    """How many of its experts the first MoE layer goes round; the next top-k of them in each step."""
    other_layers: int = Field(ge=1)
    steps: int = Field(ge=1)
    sequences: int = Field(default=1, ge=1)
    """Decoded side by side, one token each a step."""


def in_turn(built: InTurn, model: ModelSpec, name: str) -> Trace:
    """The trace, rows ordered by step.

    Raises:
        ConfigError: a layer would go round fewer experts than a token needs, or more than it has.
    """
    around = [built.first_layer] + [built.other_layers] * (len(model.moe_layers) - 1)
    for count in around:
        if not model.top_k <= count <= model.experts:
            raise ConfigError(f"{name}: {count} experts in turn: {model.name} takes {model.top_k} to {model.experts}")
    step = np.repeat(np.arange(built.steps), built.sequences)
    turns = step[:, None, None] * model.top_k + np.arange(model.top_k)
    return Trace(
        experts=(turns % np.array(around)[:, None]).astype(id_dtype(model.experts)),
        weights=None,
        step=step.astype(np.uint32),
        request=np.tile(np.arange(built.sequences, dtype=np.uint32), built.steps),
        position=step.astype(np.uint32),
        phase=np.full(len(step), DECODE, np.uint8),
        metadata=TraceMetadata(
            name=f"synthetic-{name}", model=f"none: the shape of {model.name}", layers=len(around),
            experts=model.experts, top_k=model.top_k, moe_layers=list(model.moe_layers), dataset="none",
            tokenizer="none", decoding="unknown", recorder="moesim reproduce", recorder_version=moesim.__version__,
            licence="none: built, not recorded", source="every layer takes its experts in turn", synthetic=True,
        ),
    )
