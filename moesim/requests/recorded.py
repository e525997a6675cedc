"""The requests of a stream, each with the rows of the recorded request that it replays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConfigError
from moesim.requests.arrivals import Arrival
from moesim.trace import PREFILL, Trace

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request of a stream. Its prompt runs in one step, then each row of `decode` in a step of its own."""

    number: int
    """Its place in the order of arrival."""
    arrival_ns: int
    prompt: Rows
    decode: Rows
    recorded_before: int
    """Tokens that stand before the first row: the recording begins behind them."""

    @property
    def tokens_out(self) -> int:
        """Tokens that it returns: every pass ends in one, so a prompt alone returns the first."""
        return len(self.decode) + (len(self.prompt) > 0)

    def context_tokens(self, decoded: int) -> int:
        """The length of the sequence behind the prompt and so many decoded rows."""
        return self.recorded_before + len(self.prompt) + decoded


def recorded_requests(trace: Trace, arrivals: Sequence[Arrival]) -> list[Request]:
    """What each arrival replays: the trace's requests by turns, in the order of their numbers.

    Raises:
        ConfigError: an arrival asks for more tokens than the request whose turn it is has.
    """
    number = np.asarray(trace.request)
    rows = np.argsort(number, kind="stable")
    cuts = np.flatnonzero(np.diff(number[rows])) + 1
    phase = np.asarray(trace.phase)
    recorded = []
    for own in np.split(rows, cuts):
        prompt = own[phase[own] == PREFILL]
        recorded.append((prompt, own[phase[own] != PREFILL], int(trace.position[own].min())))
    requests = []
    for each, arrival in enumerate(arrivals):
        prompt, decode, before = recorded[each % len(recorded)]
        source = f"{trace.label}: request {each} replays request {each % len(recorded)}"
        wanted = arrival.prompt_tokens
        if wanted is not None:
            if wanted > len(prompt):
                raise ConfigError(f"{source}: prompt_tokens {wanted}: it has {len(prompt)}")
            prompt = prompt[:wanted]
        wanted = arrival.output_tokens
        if wanted is not None:
            passes = wanted - (len(prompt) > 0)
            if passes > len(decode):
                raise ConfigError(f"{source}: output_tokens {wanted}: it returns {len(decode) + wanted - passes}")
            decode = decode[:passes]
        requests.append(Request(each, arrival.arrival_ns, prompt, decode, before))
    return requests
