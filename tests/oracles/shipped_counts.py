"""Misses of every policy at eight sizes on shipped traces, counted by tests/oracles/scan.py alone.

`python -m tests.oracles.shipped_counts [POLICY...]` prints the table of tests/policies/test_shipped_counts.py; it scans
every slot at every eviction and takes some minutes. Nothing of the package decides here; it only opens the file.
"""

import sys
from pathlib import Path

import numpy as np

from moesim.trace import Trace
from tests.oracles import rules, scan, two_precisions

TRACES = Path(__file__).parents[2] / "traces"
LAYERS, EXPERTS, TOP_K = 16, 64, 8
EIGHT_SLOTS = (20, 51, 102, 128, 256, 409, 512, 768)
"""2, 5, 10, 12.5, 25, 40, 50 and 75 % of 1,024."""
IN_ONE_PRECISION = "hobbit[prefetch=multi-layer,predictor=synthetic[recall=1],on_miss=skip-light,budget=shared]"
TOKENS = 24
"""The first decoded tokens of each of three requests."""


def rows(trace):
    """The first decoded tokens of the first three requests."""
    decoded = [np.flatnonzero((trace.request == request) & (trace.phase == 1))[:TOKENS] for request in range(3)]
    return np.concatenate(decoded)


def opened(name):
    return Trace.load(TRACES / f"{name}.safetensors")


def events_of(trace):
    for step, row in enumerate(rows(trace).tolist()):
        for layer in range(LAYERS):
            yield scan.Event(
                step, layer, int(trace.request[row]), tuple(trace.experts[row, layer].tolist()),
                tuple(trace.weights[row, layer].tolist()),
                () if trace.scores is None else tuple(trace.scores[row, layer].tolist()),
            )


def recorded(trace, channel, ranks):
    ranking = trace.predicted[channel].ranking[rows(trace)]

    def ask(event, residents):
        ahead = event.layer + 1
        return [] if ahead == LAYERS else [(ahead, int(e)) for e in ranking[event.step, ahead, :ranks]]

    return ask


def remembered(ask):
    """For a rule that does not look at the residents: its answers, once for all sizes."""
    answers = {}

    def again(event, residents):
        place = event.step, event.layer
        if place not in answers:
            answers[place] = ask(event, residents)
        return answers[place]

    return again


class Predicted:
    """Only the first layer fetches what is missing, if any does, and the rest executes what was foreseen."""

    def __init__(self, trace, channel):
        self._ask = recorded(trace, channel, TOP_K)

    def accesses(self, event, residents):
        if event.layer == 0:
            return event.experts
        before = scan.Event(event.step, event.layer - 1, event.request, (), ())
        return [expert for _, expert in self._ask(before, residents)]

    @staticmethod
    def fetched(event, missing):
        return missing if event.layer == 0 else ()


def first_of_all_layers(slots):
    """Experts 0 of every layer, then experts 1, and so on."""
    return {(place % LAYERS, place // LAYERS) for place in range(slots)}


def last_layers(slots):
    return {(LAYERS - 1 - place // EXPERTS, place % EXPERTS) for place in range(slots - slots % EXPERTS)}


PLACED = {
    "cpu": first_of_all_layers, "fiddler": first_of_all_layers, "ktransformers": first_of_all_layers,
    "llama-cpp": last_layers,
}
"""Policies whose residents are those of the start: whatever is not among them misses, each time."""


def over_the_link(event, missing):
    """Two in five, rounded to the nearest whole expert and half down; the first used."""
    fifths = 2 * len(missing)
    return missing[: fifths // 5 + (1 if fifths % 5 > 2 else 0)]


def cases():
    """Policy -> (trace, rules of the oracle made anew for each size)."""
    scored, plain = opened("reference-16x64-scores"), opened("reference-16x64")
    events = {id(scored): list(events_of(scored)), id(plain): list(events_of(plain))}
    on_scored = events[id(scored)]
    residual, both = (recorded(plain, channel, TOP_K) for channel in ("residual", "residual+default-vectors"))
    over = recorded(plain, "residual+default-vectors", 12)
    like_sequence = remembered(rules.activation_matrix(LAYERS, EXPERTS, TOP_K))
    like_token = remembered(rules.expert_map(LAYERS, TOP_K, 3))
    often = remembered(rules.static_frequency(LAYERS, TOP_K))
    executed = Predicted(plain, "residual+default-vectors")
    made = {
        **{name: (scored, lambda name=name: {"evict": name}) for name in (
            "lru", "lfu", "least-stale", "lhu", "fld", "cyclic-lru", "score", "lcp", "slru", "random")},
        "lcp[counts=insertion]": (scored, lambda: {"evict": "lcp[counts=insertion]"}),
        "hobbit-eviction": (scored, lambda: {"evict": "hobbit in whole numbers"}),
        "cache-prior": (scored, lambda: {"choose": rules.cache_prior()}),
        "max-rank": (scored, lambda: {"choose": rules.max_rank()}),
        "cumulative-threshold": (scored, lambda: {"choose": rules.max_rank(mass=0.6)}),
        "specmd-substitute": (scored, lambda: {"choose": rules.substitute(), "evict": "least-stale"}),
        "adapmoe-top-1": (scored, lambda: {"choose": rules.adaptive_top_1()}),
        "pre-gated": (scored, lambda: {"ask": rules.truth(on_scored)}),
        "static-frequency": (scored, lambda: {"ask": often}),
        "moe-infinity": (scored, lambda: {"ask": like_sequence, "evict": "lfu"}),
        "finemoe": (scored, lambda: {"ask": like_token, "evict": "lfu"}),
        IN_ONE_PRECISION: (scored, lambda: {
            "ask": rules.multi_layer(on_scored), "evict": "hobbit in whole numbers", "fetched": rules.skip_light}),
        "prefetch-and-refetch": (plain, lambda: {"ask": both}),
        "freetoken": (plain, lambda: {"fetched": over_the_link}),
        "speculate-and-execute": (plain, lambda: {"ask": both, "choose": executed.accesses}),
        "resident-execute": (plain, lambda: {"ask": both, "fetched": executed.fetched}),
        "mixtral-offloading": (plain, lambda: {"ask": residual}),
        "moepic": (plain, lambda: {"ask": residual, "evict": "lcp"}),  # tops, whatever their number is
        "specmd-overfetch": (plain, lambda: {"ask": over, "evict": "least-stale"}),
        "specmd-percentile[predictor=residual,percentile=85.0]": (plain, lambda: {
            "ask": recorded(plain, "residual", 10), "evict": "least-stale"}),  # of 64, 10 lie above place 53.55
        "specmd-drop-cascade": (plain, lambda: {"ask": over, "fetched": rules.skip_light, "evict": "least-stale"}),
        "specmd-drop": (plain, lambda: {"ask": over, "fetched": rules.drop, "evict": "least-stale"}),
    }
    return {name: (events[id(trace)], rule) for name, (trace, rule) in made.items()}


def cases_in_two_precisions():
    """The same for policies that keep two; the low pool has half as many slots as the other."""
    scored, plain = opened("reference-16x64-scores"), opened("reference-16x64")
    on_scored, on_plain = list(events_of(scored)), list(events_of(plain))
    over = recorded(plain, "residual+default-vectors", 12)

    def ask_high(event, residents):
        return [(*key, 0) for key in over(event, residents)]

    return {
        "hobbit[predictor=synthetic[recall=1]]": (on_scored, {
            "evict": "hobbit in whole numbers", "needs": two_precisions.by_weight,
            "ask": two_precisions.cascade_ahead(on_scored)}),
        "specmd-lowest-bit": (on_plain, {
            "evict": "least-stale", "needs": lambda event: dict.fromkeys(event.experts, 1), "ask": ask_high}),
        "specmd-precision-cascade": (on_plain, {
            "evict": "least-stale", "needs": lambda event: two_precisions.by_weight(event, skip=1.0), "ask": ask_high}),
    }


def main(wanted):
    for name, place in PLACED.items():
        if not wanted or name in wanted:
            accessed = [(event.layer, e) for event in events_of(opened("reference-16x64")) for e in event.experts]
            misses = [sum(key not in residents for key in accessed) for residents in map(place, EIGHT_SLOTS)]
            print(f'    "{name}": ({", ".join(map(str, misses))}),', flush=True)
    for name, (events, rule) in cases_in_two_precisions().items():
        if wanted and name not in wanted:
            continue
        counted = []
        for slots in EIGHT_SLOTS:
            outcomes = two_precisions.simulate(events, slots, max(TOP_K, slots // 2), layers=LAYERS, **rule)
            misses = sum(len(each.accessed) - len(each.hits) for each in outcomes)
            counted.append((misses, sum(len(each.stood_in) for each in outcomes)))
        print(f'    "{name}": ({", ".join(map(str, counted))}),  # misses, of which skipped', flush=True)
    for name, (events, rule) in cases().items():
        if wanted and name not in wanted:
            continue
        misses = [
            sum(len(each.accessed) - len(each.hits) for each in scan.simulate(events, slots, layers=LAYERS, **rule()))
            for slots in EIGHT_SLOTS
        ]
        print(f'    "{name}": ({", ".join(map(str, misses))}),', flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
