"""A trace as its predictors live through it: what one request computes in one forward pass, in order."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.trace import Trace

RequestRows = tuple[int, NDArray[np.intp]]


def request_passes(trace: Trace) -> Iterator[list[RequestRows]]:
    """For each step, in order: its requests by number, each with its rows in the order of their positions.

    Tokens of one pass are computed together, so nothing about one of them can foretell another.
    """
    step, request = np.asarray(trace.step), np.asarray(trace.request)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(step)) + 1, [len(step)]])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        owners = request[start:stop]
        yield [(int(owner), start + np.flatnonzero(owners == owner)) for owner in np.unique(owners)]
