"""A step of several requests at different places of their recordings."""

from collections.abc import Sequence

from moesim.events import Step
from moesim.requests.recorded import Rows
from moesim.trace import Trace


class ServedStep(Step):
    """One forward pass over rows from anywhere in the trace.

    One recorded request may be replayed by several running ones, so `requests` are those of the stream.
    """

    __slots__ = ("_contexts", "_of_row", "_requests", "not_before_ns")

    def __init__(
        self, trace: Trace, rows: Rows, of_row: Sequence[int], contexts: Sequence[int], not_before_ns: int
    ) -> None:
        """`of_row` names each row's request; `contexts` are the lengths of the sequences behind this step."""
        super().__init__(trace, rows, trace.experts[rows].tolist())
        self._of_row = of_row
        self._requests = sorted(set(of_row))
        self._contexts = contexts
        self.not_before_ns = not_before_ns

    @property
    def places(self) -> list[tuple[int, int]]:
        """(request of the stream, position in the recording) of each token."""
        return list(zip(self._of_row, self._trace.position[self.rows].tolist(), strict=True))

    @property
    def requests(self) -> list[int]:
        """The requests of the stream that have tokens in this step."""
        return self._requests

    @property
    def context_tokens(self) -> int:
        """The mean length of the step's sequences, rounded up: attention reads as many keys as all have together."""
        return -(-sum(self._contexts) // len(self._contexts))
