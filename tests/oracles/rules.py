"""Routes, prefetches and miss rules as their papers describe them, for tests/oracles/scan.py.

Plain loops over one token at a time, sharing no line with the package. Each returns a fresh rule with an empty memory.
"""

from __future__ import annotations

import math

# ---- routes: event, residents -> experts, heaviest first


def ranked(event):
    """All experts, the router's own choice first, then by probability; ties go to the smaller number."""
    rest = [expert for expert in range(len(event.scores)) if expert not in event.experts]
    return list(event.experts) + sorted(rest, key=lambda expert: (-event.scores[expert], expert))


def cache_prior(strength=0.5, keep=1):
    seen = {}

    def choose(event, residents):
        logits = [math.log(max(score, 2**-24)) for score in event.scores]
        ranges = seen.setdefault(event.layer, [])
        ranges.append(max(logits) - min(logits))
        delta = sum(ranges) / len(ranges)
        order = ranked(event)
        height = {}
        for rank, expert in enumerate(order):
            masked = (event.layer, expert) in residents or rank < keep
            height[expert] = logits[expert] + (strength * delta if masked else 0)
        best = sorted(order, key=lambda expert: (-height[expert], order.index(expert)))[: len(event.experts)]
        return sorted(best, key=order.index)

    return choose


def max_rank(keep=1, rank=None, mass=None):
    def choose(event, residents):
        order, count = ranked(event), len(event.experts)
        worst = 2 * count if rank is None else rank
        if mass is not None:
            total, running, worst = sum(event.scores), 0.0, 0
            while running < mass * total and worst < len(order):
                running += event.scores[order[worst]]
                worst += 1
            worst = max(worst, 1)
        chosen = order[: min(keep, count)]
        for expert in order[keep:worst]:
            if len(chosen) < count and (event.layer, expert) in residents:
                chosen.append(expert)
        for expert in order:
            if len(chosen) < count and expert not in chosen:
                chosen.append(expert)
        return sorted(chosen, key=order.index)

    return choose


def substitute():
    def choose(event, residents):
        order = ranked(event)
        stay = [expert for expert in event.experts if (event.layer, expert) in residents]
        missing = [expert for expert in event.experts if expert not in stay]
        spare = [e for e in order if (event.layer, e) in residents and e not in event.experts]
        stand_ins = spare[: len(missing)]
        return sorted(stay + stand_ins + missing[: len(missing) - len(stand_ins)], key=order.index)

    return choose


def adaptive_top_1(threshold=0.05):
    def choose(event, residents):
        alpha = event.weights[0] / sum(event.weights)
        return event.experts[:1] if (1 - alpha) ** 2 <= threshold else event.experts

    return choose


# ---- prefetches: event, residents -> (layer, expert), most wanted first


def truth(events, distance=1):
    """What the router will choose."""
    at = {(event.step, event.layer): event for event in events}

    def ask(event, residents):
        ahead = at.get((event.step, event.layer + distance))
        return [] if ahead is None else [(ahead.layer, expert) for expert in ahead.experts]

    return ask


def multi_layer(events, layers=3):
    looks = [truth(events, distance) for distance in range(1, layers + 1)]

    def ask(event, residents):
        asked = []
        for look in looks:
            named = look(event, residents)
            asked += named
            if any(key not in residents for key in named):
                break
        return asked

    return ask


def static_frequency(layers, top_k):
    uses = {}

    def ask(event, residents):
        for expert in event.experts:
            uses[event.layer, expert] = uses.get((event.layer, expert), 0) + 1
        if event.layer:
            return []
        asked = []
        for layer in range(1, layers):
            known = [key for key in uses if key[0] == layer]  # in order of first use
            asked += sorted(known, key=lambda key: -uses[key])[:top_k]
        return asked

    return ask


def _cosine(first, second):
    product = sum(value * second.get(key, 0.0) for key, value in first.items())
    lengths = [math.sqrt(sum(value * value for value in each.values())) for each in (first, second)]
    return product / (lengths[0] * lengths[1]) if min(lengths) > 0 else 0.0


def activation_matrix(layers, experts, top_k):
    """Few enough sequences that the store is never full."""
    stored, matrices, requests = [], {}, []

    def ask(event, residents):
        if event.request not in requests[-1:]:
            if requests:
                stored.append(matrices[requests[-1]])
            requests.append(event.request)
            matrices[event.request] = {}
        matrix = matrices[event.request]
        for expert in event.experts:
            matrix[event.layer, expert] = matrix.get((event.layer, expert), 0) + 1
        if not stored or event.layer + 1 == layers:
            return []
        nearest = max(stored, key=lambda each: _cosine(each, matrix))  # the first of equals
        wish = []
        for layer in range(event.layer + 1, layers):
            total = sum(nearest.get((layer, expert), 0) for expert in range(experts))
            for expert in range(experts):
                if nearest.get((layer, expert)):
                    share = nearest[layer, expert] / total
                    wish.append((-share * (1 - (layer - event.layer) / layers), layer, expert))
        return [(layer, expert) for _, layer, expert in sorted(wish)[:top_k]]

    return ask


def expert_map(layers, top_k, distance=3):
    """Rows of probabilities where there are any, else of gate weights."""
    stored, present = [], {}

    def ask(event, residents):
        if event.layer == 0:
            present.clear()
        row = event.scores or [0.0] * 256
        if not event.scores:
            for expert, weight in zip(event.experts, event.weights, strict=True):
                row[expert] = weight
        for expert, share in enumerate(row):
            present[event.layer, expert] = share
        asked = []
        ahead = event.layer + distance
        if stored and ahead < layers:
            rows = [{key: value for key, value in each.items() if key[0] <= event.layer} for each in stored]
            likeness = [_cosine(each, present) for each in rows]
            nearest = likeness.index(max(likeness))
            delta = min(1.0, max(0.0, 1 - likeness[nearest]))
            expected = {key[1]: value for key, value in stored[nearest].items() if key[0] == ahead}
            reached, total = 0.0, sum(expected.values())
            for expert in sorted(expected, key=lambda each: (-expected[each], each)):
                if len(asked) >= top_k and reached >= delta * total:
                    break
                asked.append((ahead, expert))
                reached += expected[expert]
        if event.layer + 1 == layers:
            stored.append(dict(present))
        return asked

    return ask


# ---- misses: event, missing -> those that are fetched


def drop(event, missing):
    return ()


def skip_light(event, missing, skip=0.9):
    total, passed, fetched = sum(event.weights), 0.0, []
    for expert, weight in zip(event.experts, event.weights, strict=True):
        if passed / total <= skip and expert in missing:
            fetched.append(expert)
        passed += weight
    return fetched
