"""What requests waited for, from the client's side, and what the machine did meanwhile.

    queueing     arrival to the begin of the request's first step
    TTFT         arrival to the end of the step that gives its first token
    ITL          end of one of its tokens to the end of the next (inter-token latency)
    end to end   arrival to the end of its last token

Measured are the requests behind the first `warmup_requests`; the window of steps goes from the arrival of the first of
them to the end. Throughput is that of the departures behind as many: requests and tokens from the step in which the
last of those leaves to the last step of all, so that it is the rate of arrivals while the machine keeps up, and the
rate of service when it does not.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.replay import StepOutcome
from moesim.requests.recorded import Request
from moesim.token_time import TokenTime

PERCENTILES = (50, 95, 99)


@dataclass(slots=True)
class Served:
    """One request's instants, in nanoseconds since the start of the run."""

    number: int
    arrival_ns: int
    begin_ns: int
    first_token_ns: int
    last_token_ns: int
    tokens: int


class Latency:
    """The log of one stream under one clock."""

    def __init__(self, requests: Sequence[Request], warmup_requests: int) -> None:
        self._warmup = warmup_requests
        self.window_begin_ns = requests[warmup_requests].arrival_ns
        self._arriving_ns = requests[-1].arrival_ns - self.window_begin_ns
        self.finished: list[Served] = []
        """In the order of their ends."""
        self.time = TokenTime()
        """Of everything from the start of the run to the end of the last step, waiting for arrivals included."""
        self._served: dict[int, Served] = {}
        self._itl_ns = array("q")
        self._end_ns = 0
        self._rate_from_ns = None if warmup_requests else requests[0].arrival_ns
        """Since when tokens and requests are counted for throughput."""
        self._tokens_before = 0
        self._finished_before = 0
        self._tokens = 0

    def token(self, request: Request, outcome: StepOutcome, *, last: bool) -> None:
        """A request has one more token."""
        end_ns = outcome.end_ns
        served = self._served.get(request.number)
        if served is None:
            served = Served(request.number, request.arrival_ns, outcome.begin_ns, end_ns, end_ns, 0)
            self._served[request.number] = served
        elif request.number >= self._warmup:
            self._itl_ns.append(end_ns - served.last_token_ns)
        served.last_token_ns = end_ns
        served.tokens += 1
        self._tokens += 1
        if last:
            self.finished.append(self._served.pop(request.number))

    def step(self, outcome: StepOutcome) -> None:
        """A step has ended."""
        self.time.idle_ns += outcome.begin_ns - self._end_ns
        self.time.add(outcome.time)
        self._end_ns = outcome.end_ns
        if self._rate_from_ns is None and len(self.finished) >= self._warmup:
            self._rate_from_ns = outcome.end_ns
            self._tokens_before, self._finished_before = self._tokens, len(self.finished)

    def in_window(self, outcome: StepOutcome) -> bool:
        """Whether a step belongs to the measuring window: it begins there."""
        return outcome.begin_ns >= self.window_begin_ns

    def columns(self) -> dict[str, int | float | None]:
        """The columns of a row that a stream adds, and TTFT, which counts from arrival here."""
        measured = [served for served in self.finished if served.number >= self._warmup]
        leaving_ns = self._end_ns - (self._rate_from_ns or 0)
        samples = {
            "queueing": [served.begin_ns - served.arrival_ns for served in measured],
            "ttft": [served.first_token_ns - served.arrival_ns for served in measured],
            "itl": self._itl_ns,
            "e2e": [served.last_token_ns - served.arrival_ns for served in measured],
        }
        columns: dict[str, int | float | None] = {}
        for name, values in samples.items():
            sample = np.asarray(values, dtype=np.int64)
            columns[f"{name}_mean_ns"] = float(sample.mean()) if len(sample) else None
            for percent in PERCENTILES:
                columns[f"{name}_p{percent}_ns"] = float(np.percentile(sample, percent)) if len(sample) else None
        return columns | {
            "requests_measured": len(measured),
            "requests_finished": len(self.finished),
            "arrived_per_s": (len(measured) - 1) * 1e9 / self._arriving_ns if self._arriving_ns else None,
            "requests_per_s": (len(self.finished) - self._finished_before) * 1e9 / leaving_ns if leaving_ns else None,
            "output_tokens_per_s": (self._tokens - self._tokens_before) * 1e9 / leaving_ns if leaving_ns else None,
            "run_total_ns": self.time.total_ns,
            "run_attention_ns": self.time.attention_ns,
            "run_experts_ns": self.time.experts_ns,
            "run_exposed_copy_ns": self.time.exposed_copy_ns,
            "run_host_ns": self.time.host_ns,
            "run_idle_ns": self.time.idle_ns,
        }
