"""The questions that a policy answers: SpecMD's four axes (arXiv 2602.03921), the memory's division, and a draft.

A policy decides; it never waits and never moves bytes. Experts are named by one integer,
`layer * experts_per_layer + expert`, so that a shared pool can hold any of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from moesim.capacity import Capacity, Memory
from moesim.draft.costs import CycleCosts
from moesim.draft.governor import Governor
from moesim.events import Step, UseList
from moesim.model import Precision
from moesim.policies.costs import Costs
from moesim.trace import Trace

Key = Any
"""Anything that sorts; the resident with the smallest key is evicted first."""
Present = Callable[[int], bool]
"""Whether an expert, numbered over all layers, is resident or on its way."""


def nobody(expert: int) -> bool:
    """An empty cache."""
    return False


class Route(ABC):
    """Which experts an event accesses, in order of first use."""

    lossless = True
    """True when the experts executed are those that the router chose."""
    looks_at_cache = False
    """True: the answer depends on what is resident, so no oracle can know it before."""
    reads_ahead = False
    """True: reads what the router will choose in later layers of the step, in place of a predictor."""
    choices: list[list[int]] | None = None
    """What each token of the last event executes, where that is decided token by token; None: whatever is there."""
    copies = 1
    """Most copies of one expert; copy c of expert e of a layer with E has the number c * E + e."""
    loads: dict[int, int] | None = None
    """The tokens of each expert of the last event, where the rule spreads them over copies."""

    def check(self, trace: Trace) -> None:
        """Raise ConfigError if the trace lacks a channel that this rule reads."""

    def prepare(self, layers: int, experts: int) -> None:
        """Called once, before the first event."""

    def allot(self, slots_per_layer: int) -> None:
        """Called once, before the first event, for rules that share slots out."""

    @abstractmethod
    def reads_router(self, step: Step, layer: int) -> bool:
        """Whether the host must know this layer's true ids before it can act."""

    @abstractmethod
    def accesses(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        """Expert numbers within the layer, in order of first use."""


class Prefetch(ABC):
    """Which experts to copy before their layer asks for them."""

    reads_ahead = False
    """True: reads what the router will choose in later layers of the step, in place of a predictor."""
    of_next_step = False
    """True: asks for layers of the next step too, behind their turn in this one."""
    names_low = False
    """True: may name experts in low precision, numbered behind all others (`moesim/versions.py`)."""

    def check(self, trace: Trace) -> None:
        """Raise ConfigError if the trace lacks a channel that this rule reads."""

    def prepare(self, layers: int, experts: int) -> None:
        """Called once, before the first event."""

    def allot(self, slots_per_layer: int) -> None:
        """Called once, before the first event, for rules that share slots out."""

    def on_event(self, step: Step, layer: int) -> None:
        """The router of `layer` has chosen, for rules that learn from it; called at every event, before `wanted`."""

    @abstractmethod
    def asks(self, step: Step, layer: int) -> bool:
        """Whether anything may be asked for while the token is at `layer`."""

    @abstractmethod
    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        """Experts of later layers to have copied while the token is at `layer`, most wanted first."""


class OnMiss(ABC):
    """What stands in for a missing expert."""

    lossless = True
    fetches = True
    """False: nothing is ever fetched on demand, so no slots need be held for it."""
    uses_cpu = False
    """True: may have experts executed on the CPU, so that the hardware must say how fast that is."""
    weighs_costs = False
    """True: `prepare` is given what the machine takes; decisions are then those of one machine."""
    low: Precision | None = None
    """The low precision that this rule fetches some experts in; None: it has no use for one."""

    def prepare(self, costs: Costs | None) -> None:
        """Called once, before the first event."""

    @abstractmethod
    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        """Which of the missing experts, numbered within the layer, are copied on demand.

        For the rest something else stands in, or nothing does. `missing` is in order of first use and never empty.
        """

    def at_low_precision(self, step: Step, layer: int, missing: Sequence[int]) -> Collection[int]:
        """Which of those that are fetched are fetched in `low` precision; a resident low version then serves them."""
        return ()

    def on_cpu(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        """Which of the missing experts the CPU executes, in that order: none that is fetched. If `uses_cpu`."""
        return ()

    def deferred(self, step: Step, layer: int, on_cpu: Sequence[int]) -> Sequence[int]:
        """Whose results, of those that the CPU executes, are added one layer late. Never in the last layer."""
        return ()


class Evict(ABC):
    """A sort key per resident expert: the smallest goes first.

    Keys change only in the hooks below, which return the new key of the expert they are told about; so a
    lazy heap keeps the order and no eviction scans the cache.
    """

    bypass = False
    """May drop what it has just used instead of keeping it (offline bounds, and rules that never evict)."""
    oracle = False
    """Reads the future. Such a rule is a bound, never a policy that could be deployed."""
    by_layer_distance = False
    """True: `victim_layers` says in which layers to look first, and keys only order experts of one layer."""
    weighs_layers = False
    """True: keys order the experts of one layer, and `lightest` compares the first candidates of all layers."""
    draws = False
    """True: keys mean nothing, `draw` names the victim."""
    stays = False
    """True: `placed` says who is resident from the start, and no prefill may stream layers through their slots."""

    def prepare(self, layers: int, experts: int, slots: int, future: UseList | None) -> None:
        """Called once, before the first event. `future` is given to oracles only."""

    def placed(self, layers: Sequence[int]) -> Iterable[int]:
        """Who is resident before the first event, at most as many as there are slots. `layers` share the pool."""
        return ()

    def victim_layers(self, present: int, layers: int) -> Iterable[int]:
        """In which order layers lose their experts while `present` runs, if `by_layer_distance`.

        By default the cyclic distance, ((e - n - 1) mod L) + 1 for layer e seen from n: n itself is farthest.
        """
        return [(present - back) % layers for back in range(layers)]

    def lightest(self, firsts: Sequence[Key | None], present: int) -> int:
        """The layer whose first candidate goes while `present` runs, if `weighs_layers`.

        `firsts` holds each layer's smallest key, or None. What the rule adds to keys must keep the order of a layer.
        """
        raise NotImplementedError("a rule that weighs layers says how")

    def draw(self, residents: Sequence[int], pinned: set[int]) -> int | None:
        """One of `residents`, in the order of their slots, that is not pinned; None if there is none. If `draws`."""
        return None

    def on_step(self, step: Step) -> None:
        """A forward pass begins; called before `on_pass_start`, for rules that count tokens or requests."""

    def on_event(self, step: Step, layer: int) -> None:
        """The router of `layer` has chosen; called before anything is touched, for rules that need gate weights."""

    def on_pass_start(self) -> Iterable[tuple[int, Key]]:
        """A forward pass begins. Yields the experts whose key changes by this, with the new key."""
        return ()

    def on_layer_start(self, layer: int) -> Iterable[tuple[int, Key]]:
        """The event of `layer` begins. Yields the experts whose key changes by this, with the new key."""
        return ()

    @abstractmethod
    def on_insert(self, expert: int) -> Key:
        """An expert takes a slot because an event needs it; returns its key."""

    def on_prefetch(self, expert: int) -> Key:
        """An expert takes a slot because it is foreseen; returns its key."""
        return self.on_insert(expert)

    @abstractmethod
    def on_hit(self, expert: int) -> Key:
        """A resident expert is used; returns its key, changed or not."""

    def on_touched(self) -> Iterable[tuple[int, Key]]:
        """All accesses of the event are touched. Yields further experts whose key changes by this, with the new key."""
        return ()

    def on_select(self, expert: int) -> Key | None:
        """A prefetch names an expert that is resident already; returns a new key, or None to leave it."""
        return None

    def on_evict(self, expert: int) -> None:
        """An expert has left its slot."""


class Draft(ABC):
    """Whether a draft model decodes ahead of the steps, how far, and whom it names."""

    longest = 0
    """Most tokens that are ever drafted for one step; 0: there is no draft."""
    governed = False
    """True: a governor chooses the length of every draft; `length` is then the longest."""
    reads_ahead = False
    """True: whom the draft names is made from what the router will choose."""
    precision: Precision = "int4"
    """Of the draft's routed experts, all of which stay on the GPU."""

    def check(self, trace: Trace) -> None:
        """Raise ConfigError if the trace cannot be decoded with this draft."""

    def prepare(self, layers: int, experts: int) -> None:
        """Called once, before the first event."""

    @abstractmethod
    def length(self) -> int:
        """How many tokens are drafted before the next decode step."""

    def governor(self, costs: CycleCosts, experts_per_token: int) -> Governor:
        """Who chooses the lengths, if `governed`."""
        raise NotImplementedError("a governed draft has a governor")

    def accepted(self, request: int, position: int, drafted: int) -> int:
        """How many of the tokens drafted behind the one at `position` are right, up to the first wrong one."""
        return 0

    def named(self, step: Step, number: int) -> Sequence[int]:
        """Experts that the draft's pass `number` names, numbered over all layers, the nearest layer first."""
        return ()


class Budget(ABC):
    """How the memory for experts is divided into pools."""

    keeps_low = False
    """True: some of the slots are for experts in low precision."""
    weighs_machine = False
    """True: reads what the memory says of the machine; decisions are then those of one machine."""

    @abstractmethod
    def divide(self, memory: Memory) -> Capacity:
        """The pools. Raises ConfigError where the memory cannot be divided like this."""
