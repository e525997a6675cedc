"""Every prediction that a trace can be asked about: those recorded in it, and those that it gives away itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from moesim.record.predictors import activation_matrix, previous_token, static_frequency
from moesim.trace import Availability, Prediction, Trace

COMPUTED: dict[str, tuple[Availability, Callable[[Trace], Prediction]]] = {
    module.NAME: (module.AVAILABILITY, module.predict)
    for module in (previous_token, static_frequency, activation_matrix)
}
"""What needs no model: name, availability, and the function that makes it of a trace."""


@dataclass(frozen=True, eq=False)
class Channel:
    """One predictor's answers for a trace."""

    name: str
    origin: Literal["recorded", "computed"]
    availability: Availability
    prediction: Prediction


def channels(trace: Trace) -> Iterator[Channel]:
    """The recorded channels in the order of the metadata, then the computed ones that were not recorded."""
    for name, availability in trace.metadata.predictors.items():
        yield Channel(name, "recorded", availability, trace.predicted[name])
    for name, (availability, predict) in COMPUTED.items():
        if name not in trace.predicted:
            yield Channel(name, "computed", availability, predict(trace))
