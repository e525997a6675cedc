"""What requests waited for, from the client's side, and what the machine did meanwhile.

    queueing     arrival to the begin of the request's first step
    TTFT         arrival to the end of the step that gives its first token
    ITL          end of one of its tokens to the end of the next (inter-token latency)
    end to end   arrival to the end of its last token

Measured are the requests behind the first `warmup_requests`; the window goes from the arrival of the first of them
to the end of the last step. Throughput counts every token and every request that ends in it.
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
        self._window_tokens = 0
        self._window_finished = 0

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
        if end_ns > self.window_begin_ns:
            self._window_tokens += 1
            self._window_finished += last
        if last:
            self.finished.append(self._served.pop(request.number))

    def step(self, outcome: StepOutcome) -> None:
        """A step has ended."""
        self.time.idle_ns += outcome.begin_ns - self._end_ns
        self.time.add(outcome.time)
        self._end_ns = outcome.end_ns

    def in_window(self, outcome: StepOutcome) -> bool:
        """Whether a step belongs to the measuring window: it begins there."""
        return outcome.begin_ns >= self.window_begin_ns

    def columns(self) -> dict[str, int | float | None]:
        """The columns of a row that a stream adds, and TTFT, which counts from arrival here."""
        measured = [served for served in self.finished if served.number >= self._warmup]
        window_ns = self._end_ns - self.window_begin_ns
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
            "requests_per_s": self._window_finished * 1e9 / window_ns,
            "output_tokens_per_s": self._window_tokens * 1e9 / window_ns,
            "run_total_ns": self.time.total_ns,
            "run_attention_ns": self.time.attention_ns,
            "run_experts_ns": self.time.experts_ns,
            "run_exposed_copy_ns": self.time.exposed_copy_ns,
            "run_host_ns": self.time.host_ns,
            "run_idle_ns": self.time.idle_ns,
        }
