"""EngineSpec: how an inference engine drives the GPU, apart from which experts a policy chooses.

Two engines with one policy differ by launches, pieces per copy and what the host waits for; so these are a part of
the configuration of their own. `yalis` names the engine of the seed paper (arXiv 2603.19289).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.catalogue import find
from moesim.yaml_file import read_model


class Launches(BaseModel):
    """Kernels of each group of one layer. Eagerly each is a launch of its own; a captured graph launches all at once.

    Either way each takes the GPU at least the time of its shortest kernel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: int = Field(ge=1)
    router: int = Field(ge=1)
    experts: int = Field(ge=0)
    """Per launch of the expert kernels, however many experts they run."""
    experts_each: int = Field(ge=0)
    """Added for each expert that is run."""
    head: int = Field(ge=1)


class CopyThreadSpec(BaseModel):
    """A thread on the host that submits copies in chunks, `copies_per_expert` of them (devices/copy_queues.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queues: Literal[1, 2]
    """2: what is demanded goes before what is foreseen, at the end of a chunk; 1: first come, first served."""
    submitted_ahead: int = Field(ge=1, le=1024)
    """Chunks at the engine at most: what is there is overtaken by nothing."""
    drops_unstarted: bool = False
    """When a layer's router has spoken, guesses for it whose copies have not begun are dropped."""


class EngineSpec(BaseModel):
    """What configs/engines/NAME.yaml may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    mode: Literal["eager", "graph"]
    experts_captured: bool = True
    """In mode `graph`: expert kernels are captured too; else they are launched one by one, since their slots change."""
    copies_per_expert: int = Field(ge=1, le=16)
    start: Literal["all", "each"]
    """Expert kernels wait for all copies of the event, or each for its own."""
    read_back: Literal["blocking", "overlapped"]
    """`overlapped`: kernels whose experts are known already are launched before the host waits for new ids."""
    prefill: Literal["stream", "demand"] = "stream"
    """`stream`: a prefill that needs most experts copies whole layers, one ahead; `demand`: what the router chose."""
    expert_kernels: Literal["grouped", "servers"] = "grouped"
    """`grouped`: one kernel group runs all experts of a launch. `servers`: each expert, or copy of one, is a server of
    its own that takes its tokens one after another; the launch ends with the slowest. Many GPUs, or an ideal one."""
    launches: Launches
    copy_thread: CopyThreadSpec | None = None
    """None: the loop itself submits every copy at once, and nothing overtakes."""
    last_layer_reused: bool = False
    """The public branch's bug: in decode a prefetched last layer is never loaded anew."""

    @property
    def drops_guesses(self) -> bool:
        """Whether what is resident depends on how far the copies have come, and so on the clock."""
        return self.copy_thread is not None and self.copy_thread.drops_unstarted

    @model_validator(mode="after")
    def _side_by_side(self) -> "EngineSpec":
        if self.expert_kernels == "servers" and self.start == "each":
            raise ValueError("expert_kernels servers: experts run side by side, so start must be all")
        return self

    @classmethod
    def load(cls, name_or_path: str) -> "EngineSpec":
        """The engine that configs/engines/NAME.yaml, or a file, describes."""
        return read_model(find("engines", name_or_path), cls)

    def launched(self, group: str, experts: int = 0) -> int:
        """How many kernels a group launches."""
        count: int = getattr(self.launches, group)
        if group == "experts":
            count += experts * self.launches.experts_each
        return max(1, count)
