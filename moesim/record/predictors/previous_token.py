"""The experts of the previous token: what a request used last, it uses again.

    foreseen for layer l of a token = what the router of layer l chose for the last token of the same request that an
                                      earlier pass computed, heaviest first

The locality that every cache lives on, taken as a prediction ("expert locality", arXiv 2312.17238). Known before
the pass begins. A request's first pass, its prefill, has no previous token and is not foreseen.
"""

import numpy as np

from moesim.record.predictors.passes import request_passes
from moesim.trace import Availability, Prediction, Trace

NAME = "previous-token"
AVAILABILITY = Availability(
    layer_offset=0,
    point="before the pass begins",
    description="the experts that the last token of the same request chose in an earlier pass",
)


def predict(trace: Trace) -> Prediction:
    """The prediction for every row of `trace`; k ranked, so it has no recall at 1.5 k."""
    experts = np.asarray(trace.experts)
    ranking = np.full_like(experts, trace.absent)
    last_row: dict[int, int] = {}
    for requests in request_passes(trace):
        for request, rows in requests:
            if request in last_row:
                ranking[rows] = experts[last_row[request]]
            last_row[request] = int(rows[-1])
    return Prediction(ranking)
