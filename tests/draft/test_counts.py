"""What moe-speq copies at eight sizes, counted by a plain simulation that shares no code with the package.

A table of residents that is scanned at every eviction; every rule as docs/design.md has it. The draft names truly
(recall 1), so that no draw but that of acceptance takes part, and that is 1 or 0 here.
"""

from pathlib import Path

import pytest

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.draft.verification import verification_steps
from moesim.policies.composition import parse
from moesim.trace import Trace
from tests.oracles.shipped_counts import EIGHT_SLOTS, EXPERTS, LAYERS

SHIPPED = Path(__file__).parents[2] / "traces" / "reference-16x64.safetensors"
TOKENS = 40


def decoded():
    """The first decoded tokens of the first request, as a trace of its own."""
    trace = Trace.load(SHIPPED)
    first = int((trace.phase[:] == 1).argmax())
    return trace.slice(first, first + TOKENS)


class Table:
    """Residents with the instant of their last use, and who must stay."""

    def __init__(self, slots):
        self.slots, self.used, self.kept_for, self.clock = slots, {}, {}, 0

    def now(self):
        self.clock += 1
        return self.clock

    def room(self):
        """Whether one more fits, after the least recent of those that need not stay has left."""
        if len(self.used) < self.slots:
            return True
        loose = [e for e in self.used if e not in self.kept_for]
        if loose:
            del self.used[min(loose, key=self.used.__getitem__)]
        return bool(loose)


def copied_ahead(table, wanted, guessed):
    """Bring whom the draft has named; returns those without a slot, and how many were copied."""
    left, copied = [], 0
    table.kept_for.update({e: e // EXPERTS for e in wanted})
    for expert in wanted:
        if expert in table.used:
            continue
        if table.room():
            table.used[expert] = table.now()
            guessed.add(expert)
            copied += 1
        else:
            left.append(expert)
    return left, copied


def run_event(table, layer, first_use, mass, guessed):
    """Execute one layer, in as many waves as it takes; returns the copies on demand."""
    missing = {e for e in first_use if e not in table.used}
    stamp = {e: table.now() for e in sorted(first_use, key=lambda e: mass[e], reverse=True)[::-1]}
    for expert in first_use:
        if expert not in missing:
            table.used[expert] = stamp[expert]
            table.kept_for[expert] = layer
    todo = first_use
    while todo:
        ran, later = [], []
        for expert in todo:
            if expert not in table.used:
                room = not later and table.room()
                if not room and not ran:
                    stay = [e for e in table.used if e in table.kept_for and e not in todo]
                    own = [e for e in stay if e in guessed and e // EXPERTS == layer]
                    for each in own or [e for e in stay if e in guessed] or stay:
                        del table.kept_for[each]
                    room = table.room()
                if not room:
                    later.append(expert)
                    continue
                table.used[expert] = stamp[expert]
                table.kept_for[expert] = layer
            ran.append(expert)
        todo = later
        if todo:
            for expert in ran:
                table.kept_for.pop(expert, None)
    return len(missing)


def counted(chosen, weights, k, keeps_all, slots):
    """(copies on demand, copies of whom the draft named, named and never copied), by hand."""
    table = Table(slots)
    demanded = named_copies = dropped = row = 0
    while row < len(chosen):
        run = range(row, min(row + k + 1, len(chosen)))
        waiting, guessed = [], set()

        def ahead_of(layer, waiting, guessed, table=table):
            still = [e for e in waiting if e // EXPERTS > layer]
            if waiting:
                table.kept_for.update({e: e // EXPERTS for e in guessed if e in table.used and e // EXPERTS > layer})
            left, copied = copied_ahead(table, still, guessed)
            return left, copied, len(waiting) - len(still)

        for token in run[:-1]:
            named = [layer * EXPERTS + e for layer in range(LAYERS) for e in chosen[token][layer]]
            waiting = sorted(dict.fromkeys([*waiting, *named]), key=lambda expert: expert // EXPERTS)
            waiting, copied, _ = ahead_of(-1, waiting, guessed)
            named_copies += copied
        for layer in range(LAYERS):
            mass = {}
            for token in run:
                for e, weight in zip(chosen[token][layer], weights[token][layer], strict=True):
                    mass[layer * EXPERTS + e] = mass.get(layer * EXPERTS + e, 0.0) + weight
            demanded += run_event(table, layer, list(mass), mass, guessed)
            waiting, copied, late = ahead_of(layer, waiting, guessed)
            named_copies += copied
            dropped += late
            table.kept_for = {e: of for e, of in table.kept_for.items() if of != layer}
            guessed -= {e for e in guessed if e // EXPERTS == layer}
        row += len(run) if keeps_all else 1
    return demanded, named_copies, dropped


@pytest.mark.parametrize("slots", EIGHT_SLOTS)
@pytest.mark.parametrize(("k", "p"), [(3, 1.0), (2, 0.0)])
def test_copies_at_eight_sizes(slots, k, p):
    trace = decoded()
    chosen = trace.experts.tolist()
    weights = trace.weights.astype(float).tolist()
    policy = parse(f"moe-speq[draft=self-draft[k={k},acceptance={p},predictor=synthetic[recall=1]]]")
    decider = Decider(policy, LAYERS, EXPERTS, Capacity(slots), largest_event=EXPERTS)
    window = verification_steps(trace, trace.tokens, policy.draft.length, policy.draft.accepted)
    made = list(run_without_clock(decider, window))
    got = (
        sum(len(wave.demand) for each in made for wave in each.waves),
        sum(len(each.prefetch) for each in made),
        sum(each.prefetch_dropped for each in made),
    )
    assert got == counted(chosen, weights, k, p == 1.0, slots)
