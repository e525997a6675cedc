"""Caching in two precisions with a scan of all slots at every eviction; shares no line with the package.

As `scan.simulate`, with a version in every key: 0 is the model's own precision, 1 the low one, and each has slots and
an eviction rule of its own. `needs` says of an event's expert, was it missing: 0, 1, or None to skip it.
"""

from __future__ import annotations

from tests.oracles.scan import Now, Outcome, Past, eviction, high_precision


def by_weight(event, high=0.6, skip=0.9):
    """HOBBIT's needs of an event's experts."""
    total, passed, needs = sum(event.weights), 0.0, {}
    for expert, weight in zip(event.experts, event.weights, strict=True):
        share = passed / total
        needs[expert] = 0 if share <= high else 1 if share <= skip else None
        passed += weight
    return needs


def cascade_ahead(events, layers=3):
    """HOBBIT's prefetch under perfect foresight: (layer, expert, version), most wanted first."""
    at = {(event.step, event.layer): event for event in events}

    def ask(event, residents):
        asked = []
        for distance in range(1, layers + 1):
            ahead = at.get((event.step, event.layer + distance))
            if ahead is None:
                break
            named = []
            for expert, need in by_weight(ahead).items():
                if need == 0 or (ahead.layer, expert, 0) in residents:
                    named.append((ahead.layer, expert, 0))
                elif need == 1:
                    named.append((ahead.layer, expert, 1))
            asked += named
            if any(key not in residents for key in named):
                break
        return asked

    return ask


def simulate(events, slots, low_slots, evict, *, layers, needs, ask=lambda event, residents: ()):
    """One outcome per event; keys of prefetches and victims are (layer, expert, version)."""
    holders = {0: [None] * slots, 1: [None] * low_slots}
    evictions = {0: eviction(evict, slots), 1: eviction(evict, low_slots)}
    pasts, pinned, time = {}, set(), 0
    sequence_start, request = 0, None
    outcomes = []

    def residents():
        return {holder for pool in holders.values() for holder in pool if holder is not None}

    def take(key, busy, now, outcome):
        pool, rule = holders[key[2]], evictions[key[2]]
        if None in pool:
            place = pool.index(None)
        else:
            free = [holder for holder in pool if holder not in busy]
            if not free:
                return False
            victim = rule.victim(pool, free, pasts, now)
            outcome.victims.append(victim)
            rule.gone(victim)
            place = pool.index(victim)
        pool[place] = key
        return True

    for event in events:
        if event.request != request:
            sequence_start, request = event.step, event.request
        now, here = Now(event.step, event.layer, layers, sequence_start), residents()
        outcome, needed = Outcome(list(event.experts)), needs(event)
        weight = dict(zip(event.experts, event.weights, strict=True))
        used = []
        for expert in event.experts:
            high, low = (event.layer, expert, 0), (event.layer, expert, 1)
            if high in here:
                used.append(high)
            elif needed[expert] == 0:
                used.append(high)
                outcome.fetched.add(expert)
            elif low in here:
                used.append(low)
            elif needed[expert] == 1:
                used.append(low)
                outcome.fetched.add(expert)
            else:
                outcome.stood_in.add(expert)
        outcome.hits = {key[1] for key in used if key in here}
        important = high_precision(event)
        for key in reversed(used):
            time += 1
            past = pasts.setdefault(key, Past())
            if key not in here:
                past.inserted = time
            past.touched, past.step, past.prefetched = time, event.step, False
            past.uses.append((time, event.step, weight[key[1]], key[1] in important))
            evictions[key[2]].used(key, key in here)
        for key in used:
            if key not in here:
                assert take(key, pinned | set(used), now, outcome), "sizes are chosen so that demand always fits"
        wanted = list(ask(event, residents()))
        here = residents()
        for key in wanted:
            if key in here:
                pinned.add(key)
                pasts[key].step = event.step
        for key in wanted:
            if key in here:
                continue
            if not take(key, pinned | set(used), now, outcome):
                outcome.dropped += 1
                continue
            time += 1
            past = pasts.setdefault(key, Past())
            past.inserted = past.touched = time
            past.step, past.prefetched = event.step, True
            evictions[key[2]].used(key, False)
            pinned.add(key)
            outcome.prefetched.append(key)
        pinned = {key for key in pinned if key[0] != event.layer}
        outcomes.append(outcome)
    return outcomes
