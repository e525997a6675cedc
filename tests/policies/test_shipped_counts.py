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
    "lru": (9216, 9216, 9216, 6767, 5433, 3737, 2895, 1452),
    "lfu": (9216, 9216, 9216, 8499, 6860, 5030, 4093, 1868),
    "least-stale": (9216, 9216, 9216, 7372, 5838, 4156, 3343, 1697),
    "lhu": (9216, 9027, 8198, 7900, 6273, 4419, 3370, 1591),
    "fld": (8932, 8309, 7457, 7006, 5169, 3585, 2822, 1430),
    "cyclic-lru": (8946, 8308, 7253, 6767, 5018, 3528, 2791, 1412),
    "score": (9002, 8508, 7819, 7498, 6084, 4553, 3676, 1864),
    "lcp": (8990, 8456, 7676, 7251, 5690, 4014, 3173, 1549),
    "slru": (9216, 9216, 9216, 8499, 6860, 3977, 2943, 1477),
    "random": (9216, 9017, 8261, 7758, 5886, 4204, 3303, 1682),
    "lcp[counts=insertion]": (9216, 9216, 9216, 8499, 6860, 5030, 4093, 1868),
    "hobbit-eviction": (8787, 8023, 7040, 6589, 4818, 3396, 2701, 1423),
    "cache-prior": (9216, 9216, 9216, 1492, 737, 590, 563, 562),
    "max-rank": (9216, 9216, 9216, 5002, 2536, 1095, 809, 701),
    "cumulative-threshold": (9216, 9216, 9216, 6403, 4865, 2946, 2205, 1179),
    "specmd-substitute": (9216, 9216, 9216, 128, 128, 128, 128, 128),
    "adapmoe-top-1": (8789, 8789, 8750, 6572, 5258, 3563, 2788, 1401),
    "pre-gated": (576, 576, 576, 457, 356, 229, 179, 96),
    "static-frequency": (8949, 8352, 7584, 7259, 5597, 3764, 2905, 1443),
    "moe-infinity": (9029, 9029, 9029, 8397, 6836, 5020, 4081, 1868),
    IN_ONE_PRECISION: (568, 551, 495, 475, 362, 259, 205, 134),
    "finemoe": (7708, 6364, 6310, 6072, 5026, 3791, 3134, 1555),
    "prefetch-and-refetch": (1994, 1990, 1990, 1990, 1296, 927, 678, 301),
    "speculate-and-execute": (576, 576, 576, 474, 385, 273, 188, 85),
    "resident-execute": (1990, 1990, 1990, 1770, 1311, 969, 720, 346),
    "mixtral-offloading": (2132, 2114, 2114, 2114, 1407, 988, 725, 295),
    "moepic": (2131, 2012, 1801, 1710, 1271, 877, 683, 311),  # of tops, by the number of them
    "promoe[predictor=residual]": (2132, 2114, 2114, 2114, 1407, 988, 725, 295),  # on an engine that drops nothing
    "specmd-overfetch": (1480, 979, 979, 979, 801, 555, 462, 206),
    "specmd-percentile[predictor=residual,percentile=85.0]": (1605, 1417, 1417, 1417, 1051, 789, 583, 269),
    "specmd-drop-cascade": (1425, 979, 979, 979, 822, 584, 474, 231),
    "specmd-drop": (1453, 979, 979, 979, 893, 784, 728, 641),
    "cpu": (9088, 8801, 8393, 8150, 7105, 5688, 4819, 2408),
    "fiddler": (9088, 8801, 8393, 8150, 7105, 5688, 4819, 2408),
    "ktransformers": (9088, 8801, 8393, 8150, 7105, 5688, 4819, 2408),
    "llama-cpp": (9216, 9216, 8640, 8064, 6912, 5760, 4608, 2304),
    "freetoken": (9216, 8775, 7526, 6860, 5269, 3720, 3001, 2337),
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
