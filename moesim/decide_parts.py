"""What a policy decides where slots keep only the top of an expert: the same, and where every bottom goes.

    hit:      its bottom is copied
    miss:     its top is copied into a slot of the cache, its bottom beside it
    foreseen: the bottom is copied ahead, and the top unless that is resident

Bottoms lie in a workspace of their own and are forgotten once their layer has run. Who is resident never depends on
them: hits, misses and victims are those of whole experts in as many slots.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.decision import Copy, Decision, Wave
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import Step
from moesim.policies.composition import Policy


class Bottoms:
    """The workspace: slots from `first_slot` on. Foresight leaves `for_demand` of them to the event that runs."""

    def __init__(self, first_slot: int, slots: int, for_demand: int, first_bottom: int, experts: int) -> None:
        """`first_bottom`: what is added to an expert's number to name its bottom; `experts`: those of a layer."""
        self._free = deque(range(first_slot, first_slot + slots))
        self._most_foreseen = slots - for_demand
        self._first_bottom = first_bottom
        self._experts = experts
        self._foreseen: dict[int, int] = {}
        self._running: list[int] = []
        """Slots that the kernels launched last read: theirs until something else is launched behind them."""

    def disown(self, layer: int, accessed: Sequence[int]) -> int:
        """Forget what was foreseen for a layer that does not access it; returns how many."""
        wrong = [e for e in self._foreseen if e // self._experts == layer and e not in accessed]
        self._free.extend(self._foreseen.pop(expert) for expert in wrong)
        return len(wrong)

    def in_waves(self, wave: Wave) -> list[Wave]:
        """The wave with its bottoms; several, one behind another, where they do not all fit into the workspace."""
        parts = [Wave([], [], [], [], [])]
        demand = {copy.expert: copy for copy in wave.demand}
        self.launched()
        for expert, slot in zip(wave.execute, wave.slots, strict=True):
            bottom = self._foreseen.pop(expert, None)
            if bottom is None:
                if not self._free:
                    self.launched()
                    parts.append(Wave([], [], [], [], []))
                bottom = self._free.popleft()
                parts[-1].bottoms = [*parts[-1].bottoms, Copy(self._first_bottom + expert, bottom, None)]
            part = parts[-1]
            part.execute.append(expert)
            part.slots.append(slot)
            part.bottom_slots = [*part.bottom_slots, bottom]
            if expert in demand:
                part.demand.append(demand[expert])
            self._running.append(bottom)
        return parts

    def foresee(self, expert: int) -> Copy | None:
        """The copy that brings a foreseen expert's bottom; None if it is coming already, or no slot is left."""
        if expert in self._foreseen or not self._free or len(self._foreseen) >= self._most_foreseen:
            return None
        slot = self._foreseen[expert] = self._free.popleft()
        return Copy(self._first_bottom + expert, slot, None)

    def launched(self) -> None:
        """The kernels of the wave are launched, so whatever is copied from now on waits for them."""
        self._free.extend(self._running)
        self._running.clear()


class PartsDecider(Decider):
    """A `Decider` whose slots hold tops; it says where bottoms go, and leaves all else as it is."""

    def __init__(self, policy: Policy, layers: int, experts: int, capacity: Capacity, **options: Any) -> None:
        super().__init__(policy, layers, experts, capacity, **options)
        self._named: list[int] = []
        self._bottoms = Bottoms(
            self.slots, capacity.bottom_slots, (capacity.bottom_slots + 1) // 2, layers * experts, experts
        )
        self.slots += capacity.bottom_slots

    def decide(self, step: Step, layer: int) -> Decision:
        """As a `Decider` does, and then the copies of bottoms: first the event's own, then those foreseen."""
        self._named = []
        decision = super().decide(step, layer)
        executed = [expert for wave in decision.waves for expert in wave.execute]
        decision.bottoms_unused = self._bottoms.disown(layer, executed)
        decision.waves = [part for wave in decision.waves for part in self._bottoms.in_waves(wave)]
        ahead = (self._bottoms.foresee(expert) for expert in self._named if expert // self.experts != layer)
        decision.prefetch_bottoms = [copy for copy in ahead if copy is not None]
        return decision

    def finish(self, layer: int) -> None:
        """The event's kernels are launched: whatever takes their bottoms' slots waits for them."""
        super().finish(layer)
        self._bottoms.launched()

    def _prefetch(self, decision: Decision, wanted: Sequence[int]) -> list[int]:
        dropped = super()._prefetch(decision, wanted)
        self._named += [expert for expert in wanted if expert not in dropped]
        return dropped


def check_parts(policy: Policy, engine: EngineSpec, *, on_disk: bool) -> None:
    """Raise ConfigError for what cannot be combined with experts in two parts."""
    for what, is_asked in (
        ("experts on the CPU", policy.uses_cpu),
        ("a draft", policy.draft.longest > 0),
        ("copies of an expert", policy.route.copies > 1),
        ("prefetches for the next batch", policy.prefetch.of_next_step),
        ("experts on disk", on_disk),
        (f"engine {engine.name}, which drops late guesses of whole experts", engine.drops_guesses),
        (f"engine {engine.name}, whose servers serve whole experts", engine.expert_kernels == "servers"),
    ):
        if is_asked:
            raise ConfigError(f"policy {policy.name}: split experts do not go with {what}")


def decider_of(capacity: Capacity) -> type[Decider]:
    """Who decides with these slots."""
    return PartsDecider if capacity.bottom_slots else Decider
