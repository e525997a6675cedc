"""What a policy decides for one event: who is executed, copied and evicted, in the order of the house's section 7.

    classify all accesses on the present state
    touch all of them, heaviest gate weight last
    choose demand victims
    choose prefetch victims
    (the loop launches kernels)
    unpin

The decision knows no clock, so the simulated and the real GPU execute the same one.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.cache import ExpertCache
from moesim.capacity import Capacity
from moesim.decision import CAPACITY, COLLISION, COMPULSORY, POLICY, PREFETCH, Copy, Decision, Wave
from moesim.events import PREFILL, Step, UseList
from moesim.policies.composition import Policy
from moesim.policies.costs import Costs
from moesim.policies.roles import Evict, Key, Prefetch, Present
from moesim.pools import new_pools
from moesim.precision_choice import PrecisionChoice


class OptimumHits:
    """One flag for every access of a window: does offline-optimal eviction hit it? One byte each."""

    def __init__(self) -> None:
        self._flags = bytearray()
        self._start = array("q", [0])

    def add_event(self, flags: Iterable[bool]) -> None:
        """The next event's accesses, in order of first use."""
        self._flags.extend(flags)
        self._start.append(len(self._flags))

    def of_event(self, event: int) -> bytearray:
        """The flags of an event's accesses."""
        return self._flags[self._start[event] : self._start[event + 1]]

    def of_accesses(self, first: int, last: int) -> NDArray[np.uint8]:
        """The flags of accesses `first` to `last`, exclusive, counted over all events."""
        return np.frombuffer(self._flags, np.uint8)[first:last]


class Decider:
    """A policy, its cache and its memory, run over the events of a window.

    `optimum`, where given, knows which accesses offline-optimal eviction at this capacity hits; it tells a policy's
    misses from those that no eviction could avoid.
    With `stream_prefill`, a prefill step that needs most experts has whole layers copied one layer ahead, whatever the
    policy, if two of them fit into the slots (double buffering).
    """

    def __init__(
        self,
        policy: Policy,
        layers: int,
        experts: int,
        capacity: Capacity,
        *,
        largest_event: int,
        future: UseList | None = None,
        optimum: OptimumHits | None = None,
        stream_prefill: bool = False,
        costs: Costs | None = None,
    ) -> None:
        self.policy = policy
        self.layers = layers
        self.experts = experts
        self.capacity = capacity
        self._optimum = optimum
        two_layers_fit = capacity.slots >= 2 * experts and not (capacity.everything or capacity.per_layer)
        evicts, pools, self.slots = new_pools(policy, layers, experts, capacity, largest_event, future)
        self._streams = stream_prefill and two_layers_fit and not evicts[0].stays and policy.route.copies == 1
        self._evicts = evicts
        policy.route.prepare(layers, experts)
        for rule in (policy.route, policy.prefetch):
            rule.allot(capacity.slots if capacity.per_layer else capacity.slots // layers)
        policy.prefetch.prepare(layers, experts)
        policy.on_miss.prepare(costs)
        policy.draft.prepare(layers, experts)
        self._prefetch_learns = type(policy.prefetch).on_event is not Prefetch.on_event
        self._precision = PrecisionChoice(policy.on_miss, layers, experts) if capacity.low_slots else None
        """Which version serves an access; None where there is one version."""
        self._pools = pools
        overridden = type(evicts[0])
        self._told_of_events = overridden.on_event is not Evict.on_event
        self._asked_once_touched = overridden.on_touched is not Evict.on_touched
        self._present: Present = self.is_present if capacity.per_layer else pools[0].slot_of.__contains__
        self._pool_of = pools if capacity.per_layer else pools * layers
        self._evict_of = evicts if capacity.per_layer else evicts * layers
        self._seen: set[int] = set()
        self._evicted_in_pass: dict[int, int] = {}
        self._foreseen: list[set[int]] = [set() for _ in range(layers)]
        """Per layer: whom a prefetch of this pass copied for it."""
        self._asked: list[set[int]] = [set() for _ in range(layers)]
        """Per layer: whom a prefetch of this pass named for it, copied or not."""
        self._pinned_for: list[set[int]] = [set() for _ in range(layers)]
        self._waiting: list[int] = []
        """Whom the draft named and no slot was free for, the nearest layer first."""
        self._pass = -1
        self._event = -1
        if capacity.everything:
            for expert in range(layers * experts):
                pool = self._pools[0]
                taken = pool.take_slot(0, expert)
                assert taken is not None, "there is a slot for every expert"
                pool.insert(expert, taken[0], evicts[0].on_insert(expert))
                self._seen.add(expert)
        elif evicts[0].stays and not capacity.workspace:
            for number, pool in enumerate(pools):
                for expert in evicts[number].placed([number] if capacity.per_layer else range(layers)):
                    taken = pool.take_slot(0, expert)
                    assert taken is not None, "no more are placed than there are slots"
                    pool.insert(expert, taken[0], evicts[number].on_insert(expert))
                    self._seen.add(expert)

    def begin(self, step: Step) -> None:
        """A forward pass starts."""
        self._pass += 1
        for evict, pool in zip(self._evicts, self._pools, strict=True):
            evict.on_step(step)
            pool.rekey(evict.on_pass_start())

    def foresee(self, step: Step, number: int) -> Decision:
        """Choose victims for whom the draft's pass `number` names; comes after `begin` and before the first event."""
        # Nothing of the step has run: the layer that ran last is the model's last.
        decision = Decision(self.layers - 1, [], [], reads_router=True, needs_true_ids=False)
        wanted = self.policy.draft.named(step, number)
        for expert in wanted:
            self._asked[expert // self.experts].add(expert)
        self._waiting = sorted(dict.fromkeys([*self._waiting, *wanted]), key=lambda expert: expert // self.experts)
        self._prefetch_waiting(decision, -1)
        return decision

    def decide(self, step: Step, layer: int) -> Decision:
        """Classify, touch and choose victims for one event. Events must come in order."""
        self._event += 1
        for number, evict in enumerate(self._evicts):
            self._pools[number].rekey(evict.on_layer_start(layer))
        pool, evict, base = self._pool_of[layer], self._evict_of[layer], layer * self.experts
        policy = self.policy
        chosen = policy.route.accesses(step, layer, self._present)
        accesses = [base + e for e in chosen]
        slot_of = pool.slot_of
        precision = self._precision
        if precision is not None:
            accesses = precision.versions(step, layer, accesses, slot_of)
        present = [expert for expert in accesses if expert in slot_of]
        missing = [] if len(present) == len(accesses) else [e for e in accesses if e not in slot_of]
        streamed = self._streamed(step)
        if self._prefetch_learns:
            policy.prefetch.on_event(step, layer)
        asks = not streamed and policy.prefetch.asks(step, layer)
        needs_true_ids = self.needs_true_ids(step, layer)
        decision = Decision(layer, [], [], needs_true_ids or asks, needs_true_ids)
        self._classify(decision, accesses, missing)
        self._seen.update(accesses)
        fetched = missing
        if precision is not None:
            fetched = precision.fetched(missing)
        elif missing and not (streamed and policy.on_miss.uses_cpu):
            fetched = [base + e for e in policy.on_miss.fetched(step, layer, [e - base for e in missing])]
        todo = accesses
        if len(fetched) < len(missing):
            if policy.on_miss.uses_cpu:
                self._send_to_cpu(decision, step, missing)
            decision.stood_in = [e for e in missing if e not in fetched and e not in decision.on_cpu]
            todo = [e for e in accesses if e not in decision.stood_in and e not in decision.on_cpu]
        if policy.route.loads is not None:
            decision.loads = {base + e: tokens for e, tokens in policy.route.loads.items()}
        if policy.route.choices is not None:
            executed = [*todo, *(expert for expert in decision.on_cpu if expert not in decision.deferred)]
            decision.weight_executed = weight_executed(step, layer, policy.route.choices, executed, self.experts)

        if self._told_of_events:
            evict.on_event(step, layer)
        # Touch in the order of gate weight: a missing expert gets its key now and its slot below.
        if step.tokens == 1 or chosen is not step.accesses[layer]:
            touched: Iterable[int] = reversed(accesses)
        else:
            touched = [base + e for e in step.touch_order(layer)]
            touched = touched if precision is None else precision.served(touched)
        new_keys: dict[int, Key] = {}
        for expert in touched:
            if expert in slot_of:
                pool.set_key(expert, evict.on_hit(expert))
            elif expert in fetched:
                new_keys[expert] = evict.on_insert(expert)
        if self._asked_once_touched:
            pool.rekey(evict.on_touched())
        pool.pinned.update(present)
        self._pinned_for[layer].update(present)
        while todo:
            wave, todo = self._wave(pool, layer, todo, new_keys)
            decision.waves.append(wave)
            if todo:  # this wave's kernels are launched before the next wave's copies: it is evictable now
                pool.pinned.difference_update(wave.execute)
        if streamed:
            for ahead in range(layer, min(layer + 2, self.layers)):
                whole = range(ahead * self.experts, (ahead + 1) * self.experts)
                decision.prefetch_dropped += len(self._prefetch(decision, whole))
        elif asks:
            wanted = policy.prefetch.wanted(step, layer, self._present)
            if policy.prefetch.names_low and precision is None:
                wanted = [expert % (self.layers * self.experts) for expert in wanted]
            for expert in wanted:
                self._asked[expert // self.experts % self.layers].add(expert)
            decision.prefetch_dropped += len(self._prefetch(decision, wanted))
        if self._waiting:
            self._prefetch_waiting(decision, layer)
        return decision

    def needs_true_ids(self, step: Step, layer: int) -> bool:
        """Whether the host must know what the router of this layer chose."""
        # With the whole layer resident the kernels look their experts up on the GPU: the host need not know them.
        reads = self.policy.route.reads_router(step, layer)
        return reads and not (self.capacity.everything or self._streamed(step))

    def _streamed(self, step: Step) -> bool:
        return self._streams and streams_whole_layers(step, self.experts)

    def foreseen(self, layer: int) -> set[int]:
        """Whom prefetches of this pass copied for a layer that has not had its turn."""
        return set(self._foreseen[layer])

    def take_back(self, layer: int, experts: Iterable[int]) -> list[int]:
        """Copies of foreseen experts that were never made: their slots are free again, and returned.

        An expert that has lost its slot since has none to give.
        """
        pool, slots = self._pool_of[layer], []
        for expert in experts:
            self._foreseen[layer].discard(expert)
            self._pinned_for[layer].discard(expert)
            pool.pinned.discard(expert)
            if expert in pool.slot_of:
                slots.append(pool.slot_of[expert])
                pool.drop(expert)
        return slots

    def _send_to_cpu(self, decision: Decision, step: Step, missing: list[int]) -> None:
        """Ask whom the CPU executes; results that may come late are computed last."""
        layer, base, on_miss = decision.layer, decision.layer * self.experts, self.policy.on_miss
        on_cpu = on_miss.on_cpu(step, layer, [expert - base for expert in missing])
        deferred = on_miss.deferred(step, layer, on_cpu)
        decision.deferred = [base + e for e in deferred]
        decision.on_cpu = [*(base + e for e in on_cpu if e not in deferred), *decision.deferred]
        decision.reads_router = True  # the CPU needs the layer's input, which comes with the ids

    def is_present(self, expert: int) -> bool:
        """Whether an expert is resident or on its way."""
        return expert in self._pool_of[expert // self.experts % self.layers].slot_of

    def finish(self, layer: int) -> None:
        """The event's kernels are launched: unpin, and empty a workspace."""
        pool = self._pool_of[layer]
        pool.pinned -= self._pinned_for[layer]
        self._pinned_for[layer].clear()
        self._foreseen[layer].clear()
        self._asked[layer].clear()
        if self.capacity.workspace:
            own = range(layer * self.experts, (layer + 1) * self.experts)
            everyone = self.layers * self.experts
            for expert in [e for e in pool.slot_of if e in own or e - everyone in own]:
                pool.drop(expert)
        for dropped in pool.trim(layer):
            self._evicted_in_pass[dropped] = self._pass

    def _classify(self, decision: Decision, accesses: list[int], missing: list[int]) -> None:
        layer = decision.layer
        foreseen = self._foreseen[layer]
        decision.hits = len(accesses) - len(missing)
        if foreseen:
            used = len(foreseen.intersection(accesses).difference(missing))
            decision.hits_by_prefetch = used
            decision.prefetch_unused = len(foreseen) - used
            if self._precision is not None:
                decision.prefetch_unused_low = self._precision.count_low(foreseen.difference(accesses))
        if not missing:
            return
        asked = self._asked[layer]
        optimum = self._optimum.of_event(self._event) if self._optimum is not None else b""
        absent = set(missing)
        for place, expert in enumerate(accesses):
            if expert not in absent:
                continue
            if expert not in self._seen:
                reason = COMPULSORY
            elif asked and expert not in asked:
                reason = PREFETCH
            elif self._evicted_in_pass.get(expert) == self._pass:
                reason = COLLISION
            elif optimum and optimum[place]:
                reason = POLICY
            else:
                reason = CAPACITY
            decision.misses[reason] += 1

    def _wave(
        self, pool: ExpertCache, layer: int, todo: list[int], new_keys: dict[int, object]
    ) -> tuple[Wave, list[int]]:
        """Run, in order of first use, whoever is present or can be given a slot; the rest waits for the next wave."""
        wave, rest = Wave([], [], []), []
        full = False
        for expert in todo:
            slot = pool.slot_of.get(expert)
            if slot is None:
                taken = None if full else pool.take_slot(layer, expert)
                if taken is None and not wave.execute:
                    self._unpin_prefetches(pool, layer, expert, todo)
                    taken = pool.take_slot(layer, expert)
                if taken is None:
                    full = True
                    rest.append(expert)
                    continue
                slot, displaced = taken
                if displaced is not None:
                    self._evicted_in_pass[displaced] = self._pass
                pool.insert(expert, slot, new_keys[expert])
                pool.pinned.add(expert)
                self._pinned_for[layer].add(expert)
                wave.demand.append(Copy(expert, slot, displaced))
            wave.execute.append(expert)
            wave.slots.append(slot)
        assert wave.execute, "an event with free or evictable slots always makes progress"
        return wave, rest

    def _unpin_prefetches(self, pool: ExpertCache, layer: int, expert: int, needed: list[int]) -> None:
        """Demand goes before foresight: when prefetches hold every slot that would do, they become evictable.

        First this layer's, which the router has just disowned; then those of the layers to come; last, residents
        that were only named.
        """
        held = pool.pinned.intersection(pool.slot_of).difference(needed)
        everyone = self.layers * self.experts  # from here on experts are in low precision, whose slots are others
        held = {each for each in held if (each < everyone) == (expert < everyone)}
        of_this_layer, of_any_layer = self._foreseen[layer] & held, set().union(*self._foreseen) & held
        pool.pinned -= of_this_layer or of_any_layer or held

    def _prefetch_waiting(self, decision: Decision, layer: int) -> None:
        """Whom the draft named and slots have become free for; of layers that have begun nothing is wanted any more."""
        ahead = [expert for expert in self._waiting if expert // self.experts > layer]
        decision.prefetch_dropped += len(self._waiting) - len(ahead)
        # A workspace holds two events: this one and the next.
        now = [e for e in ahead if e // self.experts == layer + 1] if self.capacity.workspace else ahead
        for foreseen in self._foreseen[layer + 1 :]:  # demand may have unpinned them: they are not for other guesses
            for expert in foreseen:
                pool = self._pool_of[expert // self.experts]
                if expert in pool.slot_of:
                    pool.pinned.add(expert)
        self._waiting = self._prefetch(decision, now) + ahead[len(now) :]

    def _prefetch(self, decision: Decision, wanted: Sequence[int]) -> list[int]:
        """Pin whom a prefetch names and bring those absent; returns those for whom no victim is left."""
        experts, layers, pool_of = self.experts, self.layers, self._pool_of
        dropped = []
        # Residents come first, so that no entry of the list evicts another.
        absent = []
        for expert in wanted:
            ahead = expert // experts % layers
            pool = pool_of[ahead]
            self._pinned_for[ahead].add(expert)
            pool.pinned.add(expert)
            if expert not in pool.slot_of:
                absent.append(expert)
                continue
            key = self._evict_of[ahead].on_select(expert)
            if key is not None:
                pool.set_key(expert, key)
        for expert in absent:
            ahead = expert // experts % layers
            pool = pool_of[ahead]
            taken = pool.take_slot(decision.layer, expert)
            if taken is None:
                dropped.append(expert)
                continue
            slot, displaced = taken
            if displaced is not None:
                self._evicted_in_pass[displaced] = self._pass
            pool.insert(expert, slot, self._evict_of[ahead].on_prefetch(expert))
            self._foreseen[ahead].add(expert)
            decision.prefetch.append(Copy(expert, slot, displaced))
        return dropped


def weight_executed(step: Step, layer: int, choices: list[list[int]], executed: list[int], experts: int) -> float:
    """Gate weight of those of each token's true choices that the token was given and that are executed."""
    here = {expert % experts for expert in executed}
    return sum(
        weight
        for gates, choice in zip(step.gates(layer), choices, strict=True)
        for expert, weight in gates
        if expert in choice and expert in here
    )


def streams_whole_layers(step: Step, experts: int) -> bool:
    """Whether a prefill step needs most experts of a layer, as far as its number of tokens tells before routing.

    n tokens that chose k of E experts evenly and independently would need E·(1 - (1 - k/E)^n) of them; real routing
    is more alike than that, so this calls for streaming a little early.
    """
    top_k = max(step.pairs) / step.tokens
    return step.phase == PREFILL and (1 - top_k / experts) ** step.tokens < 0.5


def run_without_clock(decider: Decider, window: Iterable[Step]) -> Iterable[Decision]:
    """The decisions of a window, for whoever counts and does not time."""
    for step in window:
        decider.begin(step)
        for number in range(step.drafted):
            yield decider.foresee(step, number)
        for layer in range(step.layers):
            yield decider.decide(step, layer)
            decider.finish(layer)
