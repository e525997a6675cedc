"""Misses of every policy at eight sizes on shipped traces, as an oracle outside the package counted them.

The numbers are printed by `python -m tests.oracles.shipped_counts`, where no rule of the package takes part. Of
policies with a predictor that only the package has, the recall is set to 1 or the channel is one that the trace holds.
"""

from dataclasses import replace

import pytest

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.events import steps
from moesim.policies.composition import known_policies, parse, split_call
from moesim.policies.costs import Costs
from tests.oracles.shipped_counts import EIGHT_SLOTS, IN_ONE_PRECISION, opened, rows

MISSES = {
    "lru": (9216, 9216, 9216, 6407, 5215, 3596, 2716, 1387),
    "lfu": (9216, 9216, 9216, 8435, 6589, 5076, 4108, 1957),
    "least-stale": (9216, 9216, 9216, 7143, 5514, 3898, 3146, 1605),
    "lhu": (9216, 9024, 8278, 7916, 6308, 4586, 3336, 1555),
    "fld": (8860, 8153, 7191, 6716, 4930, 3437, 2623, 1360),
    "cyclic-lru": (8926, 8172, 6988, 6407, 4823, 3380, 2614, 1350),
    "score": (8938, 8380, 7645, 7327, 6009, 4520, 3641, 1901),
    "lcp": (8975, 8430, 7578, 7128, 5514, 3851, 2980, 1534),
    "slru": (9216, 9216, 9216, 8435, 6614, 3807, 2743, 1438),
    "random": (9216, 8964, 8080, 7589, 5713, 4030, 3149, 1626),
    "lcp[counts=insertion]": (9216, 9216, 9216, 8437, 6591, 5078, 4110, 1959),
    "hobbit-eviction": (8764, 7930, 6824, 6353, 4601, 3259, 2554, 1356),
    "cache-prior": (9216, 9216, 9216, 1379, 709, 592, 567, 567),
    "max-rank": (9216, 9216, 9216, 4594, 2323, 988, 775, 686),
    "cumulative-threshold": (9216, 9216, 9216, 5911, 4458, 2666, 1973, 1098),
    "specmd-substitute": (9216, 9216, 9216, 128, 128, 128, 128, 128),
    "adapmoe-top-1": (8621, 8621, 8495, 6141, 4917, 3325, 2579, 1343),
    "pre-gated": (576, 576, 576, 442, 366, 247, 183, 89),
    "static-frequency": (8946, 8341, 7562, 7228, 5269, 3676, 2731, 1381),
    "moe-infinity": (8977, 8974, 8974, 8267, 6589, 5076, 4108, 1957),
    IN_ONE_PRECISION: (541, 511, 487, 480, 414, 312, 256, 176),
    "finemoe": (7801, 6358, 6248, 6080, 4933, 3786, 3045, 1527),
    "prefetch-and-refetch": (2179, 2162, 2162, 2162, 1345, 972, 729, 315),
    "speculate-and-execute": (576, 576, 576, 463, 380, 261, 193, 85),
    "resident-execute": (2162, 2162, 2162, 1901, 1422, 1005, 763, 368),
    "mixtral-offloading": (2259, 2219, 2219, 2219, 1383, 982, 731, 315),
    "moepic": (2259, 2100, 1906, 1789, 1361, 992, 750, 333),  # of tops, by the number of them
    "promoe[predictor=residual]": (2259, 2219, 2219, 2219, 1383, 982, 731, 315),  # on an engine that drops nothing
    "specmd-overfetch": (1738, 1099, 1099, 1099, 866, 627, 504, 235),
    "specmd-percentile[predictor=residual,percentile=85.0]": (1813, 1544, 1544, 1544, 1077, 799, 619, 297),
    "specmd-drop-cascade": (1655, 1099, 1099, 1099, 901, 681, 550, 281),
    "specmd-drop": (1585, 1099, 1099, 1099, 962, 867, 783, 661),
    "cpu": (9102, 8808, 8304, 8062, 6849, 5509, 4627, 2233),
    "fiddler": (9102, 8808, 8304, 8062, 6849, 5509, 4627, 2233),
    "ktransformers": (9102, 8808, 8304, 8062, 6849, 5509, 4627, 2233),
    "llama-cpp": (9216, 9216, 8640, 8064, 6912, 5760, 4608, 2304),
    "freetoken": (9216, 8775, 7366, 6634, 5002, 3571, 2881, 2375),
}
PLAIN = {
    "prefetch-and-refetch", "speculate-and-execute", "resident-execute", "mixtral-offloading", "specmd-overfetch",
    "specmd-percentile[predictor=residual,percentile=85.0]", "specmd-drop", "specmd-drop-cascade",
    "promoe[predictor=residual]", "moepic",
    "cpu", "fiddler", "ktransformers", "llama-cpp", "freetoken",
}
"""Those that read a recorded prediction, or nothing; the others are counted on the trace with scores."""
COSTS = Costs((10,), (2,), 13, link_bytes_per_s=2e9, host_bytes_per_s=5e9)
"""Two in five of the missing experts go over the link, for the policy that asks."""
ELSEWHERE = {
    "on-demand", "all-resident", "belady", "fifo", "moe-speq", "expert-replication", "specmd-lowest-bit",
    "specmd-precision-cascade", "adapmoe",
}
"""The first two keep nothing and everything; belady and fifo are pinned in tests/test_real_traces.py, what verifies
several tokens at once in tests/draft/test_counts.py, what keeps two precisions in tests/policies/test_precision.py.
adapmoe is adapmoe-top-1 with a predictor that only the package has, in pools that tests/policies/test_budget.py counts.
Replication does nothing at one token a step."""


def shipped(name):
    """The rows that the oracle counts, as a trace of one token a step."""
    trace = opened(name)
    kept = rows(trace)
    arrays = {key: getattr(trace, key)[kept] for key in ("experts", "weights", "step", "request", "position", "phase")}
    predicted = {key: replace(each, ranking=each.ranking[kept], scores=None) for key, each in trace.predicted.items()}
    scores = None if trace.scores is None else trace.scores[kept]
    return replace(trace, **arrays, scores=scores, predicted=predicted, path=None, mapping=None)


@pytest.mark.parametrize("policy", MISSES)
def test_misses_at_eight_sizes(policy):
    trace = shipped("reference-16x64" if policy in PLAIN else "reference-16x64-scores")
    parse(policy).check(trace)
    counted = []
    for slots in EIGHT_SLOTS:
        decider = Decider(
            parse(policy), trace.layers, trace.n_experts, Capacity(slots), largest_event=trace.top_k, costs=COSTS
        )
        counted.append(sum(each.misses.total() for each in run_without_clock(decider, steps(trace))))
    assert tuple(counted) == MISSES[policy]


def test_no_policy_is_left_out():
    assert {split_call(policy)[0] for policy in MISSES} | ELSEWHERE == set(known_policies())
