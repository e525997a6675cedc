"""LRU in one pool, and on-demand: the decisions of `decide.py` and the operations of `replay.py`, compiled.

What is to be prefetched is asked of the policy's rule before, in Python, and comes in as lists. For each event of a
block of steps: classify, touch, choose victims, enqueue; in the order that those two files have. Experts are numbered
over all layers. Residents stand in a list from the oldest use to the latest (in a workspace: from the first to come to
the last).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.compiled.clock import (
    COPY,
    DECIDED,
    END,
    LATE,
    LAUNCH,
    READ_BACK,
    RECORD_COMPUTE,
    RECORD_COPIES,
    WAIT_COMPUTE,
    WAIT_COPIES,
)
from moesim.compiled.jit import compiled, inlined

Integers = NDArray[np.int64]

(HITS, HITS_BY_PREFETCH, COMPULSORY, PREFETCH, COLLISION, POLICY, CAPACITY, PREFETCHES, DROPPED, UNUSED) = range(10)
"""Columns of what is counted in each step; the reasons of misses stand in the order of `decide.REASONS`."""
COUNT_COLUMNS = 10

(CLOCK, OLDEST, LATEST, FREE_FIRST, FREE_COUNT, PASS, LAUNCHED, COMPLETE, EVENTS, CODES, AHEAD) = range(11)
"""Places of `Cache.state`. AHEAD: how many events have named experts for layers that have not run yet."""
STATES = 11


class Cache(NamedTuple):
    """Everything that outlives an event. Of each expert, of each slot, and the counters of `state`."""

    slot_of: Integers
    """-1 for an absent expert."""
    stamp: Integers
    older: Integers
    newer: Integers
    pinned: NDArray[np.bool_]
    foreseen: NDArray[np.bool_]
    asked: NDArray[np.bool_]
    """Named by a prefetch of this pass, copied or not."""
    seen: NDArray[np.bool_]
    evicted_in_pass: Integers
    free: Integers
    """Free slots in a ring."""
    arrival: Integers
    """The event of what was copied into each slot and not yet read; -1 for none."""
    read_by: Integers
    """Which expert kernel, counted from 1, read each slot last."""
    state: Integers


class Program(NamedTuple):
    """What a block enqueues, for the clock; and of each of its events, whether kernels wait for it already."""

    codes: NDArray[np.int8]
    arguments: Integers
    waited: NDArray[np.bool_]
    foreseen: NDArray[np.bool_]


class Waves(NamedTuple):
    """One event's waves, one behind the other: whom they execute, in which slots, and which slots are copied into."""

    expert: Integers
    slot: Integers
    pairs: Integers
    demand: Integers
    todo: Integers
    rest: Integers
    """Who is still to come, by place among the accesses."""
    end: Integers
    """Where each wave's experts end, from place 1 on."""
    demand_end: Integers


def new_cache(layers: int, experts: int, slots: int) -> Cache:
    """An empty cache."""
    every = layers * experts

    def filled(count: int, value: int) -> Integers:
        return np.full(count, value, np.int64)

    state = filled(STATES, 0)
    state[OLDEST] = state[LATEST] = state[PASS] = -1
    state[FREE_COUNT] = slots
    return Cache(
        slot_of=filled(every, -1), stamp=filled(every, 0), older=filled(every, -1), newer=filled(every, -1),
        pinned=np.zeros(every, np.bool_), foreseen=np.zeros(every, np.bool_),
        asked=np.zeros(every, np.bool_), seen=np.zeros(every, np.bool_),
        evicted_in_pass=filled(every, -1), free=np.arange(slots), arrival=filled(slots, -1), read_by=filled(slots, 0),
        state=state,
    )


@inlined
def _unlink(cache: Cache, expert: int) -> None:
    older, newer = cache.older[expert], cache.newer[expert]
    if older >= 0:
        cache.newer[older] = newer
    else:
        cache.state[OLDEST] = newer
    if newer >= 0:
        cache.older[newer] = older
    else:
        cache.state[LATEST] = older


@inlined
def _link(cache: Cache, expert: int, stamp: int) -> None:
    """Put an expert in its place by its stamp, which is one of the latest."""
    older = cache.state[LATEST]
    while older >= 0 and cache.stamp[older] > stamp:
        older = cache.older[older]
    newer = cache.newer[older] if older >= 0 else cache.state[OLDEST]
    cache.stamp[expert], cache.older[expert], cache.newer[expert] = stamp, older, newer
    if older >= 0:
        cache.newer[older] = expert
    else:
        cache.state[OLDEST] = expert
    if newer >= 0:
        cache.older[newer] = expert
    else:
        cache.state[LATEST] = expert


@inlined
def _take_slot(cache: Cache) -> int:
    """A free slot, or that of the oldest resident that is not pinned; -1 if there is none."""
    state = cache.state
    if state[FREE_COUNT]:
        slot = cache.free[state[FREE_FIRST]]
        state[FREE_FIRST] = (state[FREE_FIRST] + 1) % len(cache.free)
        state[FREE_COUNT] -= 1
        return int(slot)
    victim = state[OLDEST]
    while victim >= 0 and cache.pinned[victim]:
        victim = cache.newer[victim]
    if victim < 0:
        return -1
    slot = cache.slot_of[victim]
    cache.slot_of[victim] = -1
    cache.evicted_in_pass[victim] = state[PASS]
    _unlink(cache, victim)
    return int(slot)


@inlined
def _push(cache: Cache, program: Program, code: int, argument: int) -> None:
    place = cache.state[CODES]
    program.codes[place], program.arguments[place] = code, argument
    cache.state[CODES] = place + 1


@inlined
def _record(cache: Cache, program: Program, code: int, foreseen: bool) -> int:
    """Enqueue the record of an event; returns its number."""
    event = cache.state[EVENTS]
    program.waited[event], program.foreseen[event] = False, foreseen
    cache.state[EVENTS] = event + 1
    _push(cache, program, code, 0)
    return int(event)


@compiled
def _read_back(cache: Cache, program: Program) -> None:
    """The host waits for all that was launched, and knows it to be complete."""
    _push(cache, program, READ_BACK, _record(cache, program, RECORD_COMPUTE, False))
    cache.state[COMPLETE] = cache.state[LAUNCHED]


@compiled
def _copy(cache: Cache, program: Program, slots: Any, each: bool, foreseen: bool) -> None:
    """Enqueue copies in order, behind whatever still reads their slots."""
    begin = 0
    for place in range(len(slots)):
        slot = slots[place]
        if cache.read_by[slot] > cache.state[COMPLETE]:
            _push(cache, program, WAIT_COPIES, _record(cache, program, RECORD_COMPUTE, False))
            cache.state[COMPLETE] = cache.state[LAUNCHED]
        _push(cache, program, COPY, 0)
        if each or place == len(slots) - 1:
            event = _record(cache, program, RECORD_COPIES, foreseen)
            cache.arrival[slots[begin : place + 1]] = event
            begin = place + 1


@compiled
def _launch(cache: Cache, program: Program, slots: Any, pairs: int, pairs_limit: int) -> None:
    """Enqueue the kernels of some experts behind the copies that they need. Their kernel is named by size."""
    for slot in slots:
        event = cache.arrival[slot]
        if event >= 0 and not program.waited[event]:
            program.waited[event] = True
            _push(cache, program, WAIT_COMPUTE, event)
    _push(cache, program, LAUNCH, -1 - (len(slots) * pairs_limit + pairs))
    cache.state[LAUNCHED] += 1
    for slot in slots:
        event = cache.arrival[slot]
        if event >= 0 and program.foreseen[event]:
            _push(cache, program, LATE, event)
        cache.arrival[slot] = -1
        cache.read_by[slot] = cache.state[LAUNCHED]


@compiled
def _execute(cache: Cache, program: Program, slots: Any, pairs: Any, pairs_limit: int, each: bool) -> None:
    """Enqueue a wave's kernels: all at once, or first whoever is there and then each as it lands."""
    if not each:
        _launch(cache, program, slots, pairs.sum(), pairs_limit)
        return
    there = np.empty(len(slots), np.bool_)
    for place in range(len(slots)):
        event = cache.arrival[slots[place]]
        there[place] = event < 0 or program.waited[event]
    if there.any():
        _launch(cache, program, slots[there], pairs[there].sum(), pairs_limit)
    for place in range(len(slots)):
        if not there[place]:
            _launch(cache, program, slots[place : place + 1], pairs[place], pairs_limit)


@compiled
def _unpin_prefetches(cache: Cache, experts: int, layer: int, needed: Any) -> None:
    """Demand goes before foresight: this layer's wrong guesses become evictable, or else all those to come."""
    wanted = np.zeros(len(cache.pinned), np.bool_)
    wanted[needed] = True
    own = False
    for expert in range(layer * experts, (layer + 1) * experts):
        if cache.foreseen[expert] and not wanted[expert] and cache.pinned[expert]:
            cache.pinned[expert] = False
            own = True
    if not own:
        for expert in range(len(cache.pinned)):
            if cache.foreseen[expert] and not wanted[expert]:
                cache.pinned[expert] = False


@compiled
def _classify(cache: Cache, accesses: Any, optimum: Any, counts: Any, experts: int, layer: int) -> None:
    """Count hits, and misses by reason."""
    first, last = layer * experts, (layer + 1) * experts
    named = cache.state[AHEAD] > 0
    used, asked = 0, named and cache.asked[first:last].any()
    for place in range(len(accesses)):
        expert = accesses[place]
        if cache.slot_of[expert] >= 0:
            counts[HITS] += 1
            used += cache.foreseen[expert]
            continue
        if not cache.seen[expert]:
            counts[COMPULSORY] += 1
        elif asked and not cache.asked[expert]:
            counts[PREFETCH] += 1
        elif cache.evicted_in_pass[expert] == cache.state[PASS]:
            counts[COLLISION] += 1
        elif len(optimum) and optimum[place]:
            counts[POLICY] += 1
        else:
            counts[CAPACITY] += 1
    counts[HITS_BY_PREFETCH] += used
    if named:
        counts[UNUSED] += cache.foreseen[first:last].sum() - used
    for expert in accesses:
        cache.seen[expert] = True


@compiled
def _foresee(cache: Cache, wanted: Any, slots: Any, taken: int, counts: Any) -> int:
    """Give slots to whom a prefetch wants, behind the `taken` slots that are given; returns how many there are then."""
    for expert in wanted:  # residents first, so that no entry of the list evicts another
        cache.pinned[expert] = True
    for expert in wanted:
        if cache.slot_of[expert] >= 0:
            continue
        slot = _take_slot(cache)
        if slot < 0:
            counts[DROPPED] += 1
            continue
        cache.slot_of[expert] = slot
        cache.state[CLOCK] += 1
        _link(cache, expert, cache.state[CLOCK])
        cache.foreseen[expert] = True
        counts[PREFETCHES] += 1
        slots[taken] = slot
        taken += 1
    return taken


@compiled
def _touch(cache: Cache, touched: Any, stamps: Any, workspace: bool) -> None:
    """Stamp and pin who is resident, in order of gate weight; a missing expert gets its stamp now, its slot later."""
    for expert in touched:
        cache.state[CLOCK] += 1
        if cache.slot_of[expert] < 0:
            stamps[expert] = cache.state[CLOCK]
            continue
        cache.pinned[expert] = True
        if not workspace:
            _unlink(cache, expert)
            _link(cache, expert, cache.state[CLOCK])


@compiled
def _make_waves(
    cache: Cache, accesses: Any, pairs: Any, stamps: Any, experts: int, layer: int, workspace: bool, waves: Waves
) -> int:
    """Give slots in order of first use; whoever finds none waits for the next wave. Returns the number of waves."""
    count = demanded = executed = 0
    todo = waves.todo[: len(accesses)]
    for place in range(len(accesses)):
        todo[place] = place
    while len(todo):
        rest, begin, full = waves.rest, executed, False
        waiting = 0
        for place in todo:
            expert = accesses[place]
            slot = cache.slot_of[expert]
            if slot < 0:
                slot = -1 if full else _take_slot(cache)
                if slot < 0 and executed == begin:
                    _unpin_prefetches(cache, experts, layer, accesses[todo])
                    slot = _take_slot(cache)
                if slot < 0:
                    full = True
                    rest[waiting] = place
                    waiting += 1
                    continue
                if workspace:  # in order of coming
                    cache.state[CLOCK] += 1
                    stamps[expert] = cache.state[CLOCK]
                cache.slot_of[expert] = slot
                cache.pinned[expert] = True
                _link(cache, expert, stamps[expert])
                waves.demand[demanded] = slot
                demanded += 1
            waves.expert[executed], waves.slot[executed], waves.pairs[executed] = expert, slot, pairs[place]
            executed += 1
        todo = todo[:waiting]
        todo[:] = rest[:waiting]
        if waiting:  # this wave's kernels are launched before the next wave's copies: it is evictable now
            cache.pinned[waves.expert[begin:executed]] = False
        count += 1
        waves.demand_end[count], waves.end[count] = demanded, executed
    return count


@compiled
def _finish(cache: Cache, accesses: Any, experts: int, layer: int, workspace: bool) -> None:
    """Unpin the layer, and empty a workspace of it."""
    first, last = layer * experts, (layer + 1) * experts
    if cache.state[AHEAD]:
        cache.pinned[first:last] = False
        cache.foreseen[first:last] = False
        cache.asked[first:last] = False
        if last == len(cache.pinned):
            cache.state[AHEAD] = 0
    else:
        for expert in accesses:
            cache.pinned[expert] = False
    if not workspace:
        return
    state = cache.state
    expert = state[OLDEST]
    while expert >= 0:
        newer = cache.newer[expert]
        if first <= expert < last:
            cache.free[(state[FREE_FIRST] + state[FREE_COUNT]) % len(cache.free)] = cache.slot_of[expert]
            state[FREE_COUNT] += 1
            cache.slot_of[expert] = -1
            _unlink(cache, expert)
        expert = newer


@compiled
def decide_and_enqueue(
    cache: Cache, program: Program, accesses: Integers, touched: Integers, pairs: Integers, starts: Integers,
    wanted: Integers, wanted_starts: Integers, optimum: Any, dense: Integers, plan: Integers, streamed: Any,
    reuses: Any, experts: int, workspace: bool, each: bool, pairs_limit: int, counts: Integers,
) -> int:
    """Decide and enqueue a block of steps; returns the number of operations.

    `accesses`, `touched` (heaviest last) and `pairs` of event n stand at `starts[n]` to `starts[n + 1]`, and so does
    `optimum`, unless it is empty; whom it has prefetched, in `wanted` by `wanted_starts`. `streamed` and `reuses`:
    steps that copy whole layers ahead, or leave a prefetched last layer as it is. `dense` [steps, 4]: kernels of
    attention, router, a dense layer and the head. `plan`: of each of the model's layers its place among the MoE
    layers, or -1. `counts` [steps, COUNT_COLUMNS] is filled. The kernel of n experts and p pairs is named
    -1 - (n * pairs_limit + p).
    """
    state = cache.state
    state[CODES] = 0
    layers, event = len(cache.slot_of) // experts, 0
    stamps = np.empty(len(cache.slot_of), np.int64)
    ahead = np.empty(2 * len(cache.slot_of), np.int64)
    waves = Waves(
        np.empty(experts, np.int64), np.empty(experts, np.int64), np.empty(experts, np.int64),
        np.empty(experts, np.int64), np.empty(experts, np.int64), np.empty(experts, np.int64),
        np.zeros(experts + 1, np.int64), np.zeros(experts + 1, np.int64),
    )
    for step in range(len(dense)):
        state[PASS] += 1
        for layer in plan:
            if layer < 0:
                _push(cache, program, LAUNCH, dense[step, 2])
                continue
            _push(cache, program, LAUNCH, dense[step, 0])
            _push(cache, program, LAUNCH, dense[step, 1])
            here = slice(starts[event], starts[event + 1])
            ask = wanted[wanted_starts[event] : wanted_starts[event + 1]]
            event += 1
            _classify(cache, accesses[here], optimum[here], counts[step], experts, layer)
            _touch(cache, touched[here], stamps, workspace)
            count = _make_waves(cache, accesses[here], pairs[here], stamps, experts, layer, workspace, waves)
            foreseen = 0
            state[AHEAD] += streamed[step] or len(ask) > 0
            if streamed[step]:
                for other in range(layer, min(layer + 2, layers)):
                    whole = np.arange(other * experts, (other + 1) * experts)
                    foreseen = _foresee(cache, whole, ahead, foreseen, counts[step])
            else:
                for expert in ask:
                    cache.asked[expert] = True
                foreseen = _foresee(cache, ask, ahead, 0, counts[step])
                _read_back(cache, program)
            if reuses[step] and layer + 1 == layers - 1:
                foreseen = 0
            _push(cache, program, DECIDED, 0)
            for wave in range(count):
                _copy(cache, program, waves.demand[waves.demand_end[wave] : waves.demand_end[wave + 1]], each, False)
                if wave == count - 1:
                    _copy(cache, program, ahead[:foreseen], each, True)
                mine = slice(waves.end[wave], waves.end[wave + 1])
                _execute(cache, program, waves.slot[mine], waves.pairs[mine], pairs_limit, each)
            if count == 0:
                _copy(cache, program, ahead[:foreseen], each, True)
            _finish(cache, accesses[here], experts, layer, workspace)
        _push(cache, program, LAUNCH, dense[step, 3])
        _read_back(cache, program)
        _push(cache, program, END, 0)
    return int(state[CODES])
