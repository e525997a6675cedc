"""What a policy decided for one event: who is copied where, executed in which waves, and why each miss missed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

COMPULSORY, PREFETCH, COLLISION, POLICY, CAPACITY = (
    "compulsory", "prefetch", "collision", "policy", "capacity",
)
REASONS = (COMPULSORY, PREFETCH, COLLISION, POLICY, CAPACITY)


@dataclass(slots=True)
class Copy:
    """One expert to bring into a slot; `displaced` is whoever held it."""

    expert: int
    slot: int
    displaced: int | None


@dataclass(slots=True)
class Wave:
    """Copies, then kernels: as many of an event's experts as the slots hold at once."""

    demand: list[Copy]
    execute: list[int]
    """Experts in order of first use."""
    slots: list[int]
    bottoms: Sequence[Copy] = ()
    """Where slots hold only the top of an expert: the bottoms to copy for this wave."""
    bottom_slots: Sequence[int] = ()
    """Where the bottom of each executed expert is."""


@dataclass(slots=True)
class Decision:
    """The outcome of one event. `hits` were present when the event began; `misses` gives each miss its reason."""

    layer: int
    waves: list[Wave]
    prefetch: list[Copy]
    reads_router: bool
    """The host must read ids back before it can copy anything for this event."""
    needs_true_ids: bool
    """... because this layer's own ids decide, not only a prediction for a later one."""
    hits: int = 0
    hits_by_prefetch: int = 0
    """Hits on experts whose copy a prefetch for this very event had issued."""
    misses: Counter[str] = field(default_factory=Counter)
    stood_in: list[int] = field(default_factory=list)
    """Accessed experts that were not executed because something else stood in for them."""
    on_cpu: Sequence[int] = ()
    """Missing experts that the CPU executes, in that order; they are in no wave."""
    deferred: Sequence[int] = ()
    """Of these, whose results are added one layer late; they are the last to run."""
    weight_executed: float | None = None
    """Gate weight of the router's own choices that their tokens execute; None: of all that the waves execute."""
    loads: dict[int, int] | None = None
    """Tokens of each executed expert, where they are spread over copies."""
    prefetch_bottoms: Sequence[Copy] = ()
    """Bottoms of foreseen experts, whose tops are resident or among `prefetch`."""
    bottoms_unused: int = 0
    """Bottoms that were foreseen for this event and not accessed by it."""
    prefetch_dropped: int = 0
    prefetch_unused: int = 0
    """Prefetched for this event and not accessed by it."""
    prefetch_unused_low: int = 0
    """... those of them that came in low precision."""
