"""A trace of single sequences as one of batches: the routing of a token does not depend on who else is in its step."""

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError
from moesim.trace import DECODE, PREFILL, Prediction, Trace


def batch_decode(trace: Trace, sequences: int) -> Trace:
    """The decode tokens of `trace` in steps of `sequences` tokens: token i of each of so many requests is a step.

    Requests are taken in order, as many at a time; a group ends with its shortest request. Prefill is left out.

    Raises:
        TraceError: the trace has not that many requests.
    """
    decoded = np.flatnonzero(trace.phase[:] == DECODE)
    of_request = [decoded[trace.request[decoded] == number] for number in np.unique(trace.request[decoded])]
    if not 1 <= sequences <= len(of_request):
        raise TraceError(f"{trace.label}: batches of {sequences}: the trace decodes {len(of_request)} requests")
    rows = []
    for first in range(0, len(of_request) - sequences + 1, sequences):
        group = of_request[first : first + sequences]
        shortest = min(map(len, group))
        rows.append(np.stack([each[:shortest] for each in group], axis=1))
    chosen = np.concatenate(rows)
    return _with_rows(
        trace, chosen.ravel(), np.repeat(np.arange(len(chosen), dtype=np.uint32), sequences), f"batch{sequences}"
    )


def only_prefill(trace: Trace) -> Trace:
    """The prefill steps alone. Raises TraceError when there is none."""
    rows = np.flatnonzero(trace.phase[:] == PREFILL)
    if not len(rows):
        raise TraceError(f"{trace.label}: no prefill to take")
    return _with_rows(trace, rows, trace.step[rows], "prefill")


def _with_rows(trace: Trace, rows: NDArray[np.intp], step: NDArray[np.uint32], name: str) -> Trace:
    present = set(trace.request[rows].tolist())
    requests = [each for each in trace.metadata.requests if each.request in present]
    metadata = trace.metadata.model_copy(update={"name": f"{trace.metadata.name}-{name}", "requests": requests})
    return Trace(
        experts=trace.experts[rows],
        weights=None if trace.weights is None else trace.weights[rows],
        step=step,
        request=trace.request[rows],
        position=trace.position[rows],
        phase=trace.phase[rows],
        metadata=metadata,
        scores=None if trace.scores is None else trace.scores[rows],
        predicted={
            each: Prediction(prediction.ranking[rows], None if prediction.scores is None else prediction.scores[rows])
            for each, prediction in trace.predicted.items()
        },
    )
