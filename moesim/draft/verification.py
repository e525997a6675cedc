"""Decode steps of a trace, put together as a model verifies drafts: k drafted tokens and the one before them at once.

    tokens of a request    t0 t1 t2 t3 t4 t5 ...      k = 3, the draft of t3 is wrong
    a step runs            t0 t1 t2 t3                t1 and t2 were drafted rightly
    and keeps              t0 t1 t2                   the model's own t3 comes with them for nothing
    the next step runs              t3 t4 t5 t6

A token is kept by exactly one step. The routing of rejected drafts is in no trace: in their place the trace's
following tokens are run, here t3, and run again when their turn comes.
"""

from collections import deque
from collections.abc import Callable, Iterator

from moesim.events import DECODE, Step, steps
from moesim.trace import Trace


class VerificationStep(Step):
    """A forward pass over the last kept token and the `drafted` ones behind it; the first `kept` of these count."""

    __slots__ = ("_kept", "drafted", "each")

    def __init__(self, trace: Trace, each: list[Step], kept: int) -> None:
        """`each` holds the step of every token, as the trace has them; their rows follow each other."""
        rows = slice(first_row(each[0]), first_row(each[-1]) + 1)
        super().__init__(trace, rows, [one.accesses for one in each])
        self.each = each
        self.drafted = len(each) - 1
        self._kept = kept

    @property
    def kept(self) -> int:
        """Drafts up to the first wrong one, and the model's own token."""
        return self._kept

    def token(self, number: int) -> Step:
        """One token of the step, alone: what the draft's pass `number` runs."""
        return self.each[number]


def first_row(step: Step) -> int:
    """The row of a recorded step's first token."""
    assert isinstance(step.rows, slice), "a step as the trace has it"
    return int(step.rows.start)


def verification_steps(
    trace: Trace, stop: int, draft_length: Callable[[], int], accepted: Callable[[int, int, int], int]
) -> Iterator[Step]:
    """The steps of rows 0 to `stop`, decoded with drafts; a draft never looks past its request's last token.

    `draft_length` is asked at every decode step how many tokens are drafted; 0 leaves the step as the trace has it.
    `accepted` says how many of them are right, given request, position of the step's first token, and their number.
    """
    source = steps(trace, 0, stop)
    ahead: deque[Step] = deque()
    while True:
        wanted = 1
        if not ahead:
            first = next(source, None)
            if first is None:
                return
            ahead.append(first)
        if ahead[0].phase == DECODE:
            wanted += draft_length()
        while len(ahead) < wanted:
            following = next(source, None)
            if following is None:
                break
            ahead.append(following)
        request = int(trace.request[first_row(ahead[0])])
        together = [ahead[0]]
        for following in list(ahead)[1:wanted]:
            if following.phase != DECODE or int(trace.request[first_row(following)]) != request:
                break
            together.append(following)
        if len(together) == 1:
            yield ahead.popleft()
            continue
        position = int(trace.position[first_row(together[0])])
        kept = 1 + accepted(request, position, len(together) - 1)
        for _ in range(kept):
            ahead.popleft()
        yield VerificationStep(trace, together, kept)
