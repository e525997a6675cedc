"""Where predictions come from: recorded with the trace, or synthetic with a chosen accuracy.

Every rule that has a parameter `predictor` takes either:

    predictor=residual                                  a channel of the trace, foreseen by a real predictor
    predictor=synthetic[recall=0.9,seed=0]              right with the given probability, on any trace
    predictor=synthetic[recall=0.63/0.93/0.9,seed=0]    layer by layer from the first foreseen one; the last goes on
"""

from abc import ABC, abstractmethod
from math import ceil

from moesim.errors import ConfigError, nearest
from moesim.events import Step
from moesim.seeded_hash import hashed, mixed
from moesim.trace import Trace

SYNTHETIC = "synthetic"


class Foresight(ABC):
    """A ranking of the experts of a layer, made before the layer is reached."""

    reads_ahead = False
    """True: made from what the router will choose."""
    channel: str | None = None
    """The channel of the trace that holds the rankings, if one does."""

    @abstractmethod
    def check(self, trace: Trace, ranks: int, layers: int = 1) -> None:
        """Raise ConfigError if the trace cannot give `ranks` ranks, or nothing `layers` layers ahead."""

    @abstractmethod
    def offset(self, step: Step) -> int:
        """How many layers before its target a prediction is made."""

    @abstractmethod
    def foresees(self, step: Step, layer: int) -> bool:
        """Whether anything is foreseen for `layer` in this step."""

    @abstractmethod
    def ranking(self, step: Step, layer: int, count: int) -> list[int]:
        """Distinct experts of `layer`: every token's first choice, then every second, to `count` ranks a token."""

    def check_weights(self, trace: Trace) -> None:
        """Raise ConfigError if the trace does not say with what weight experts are foreseen."""

    @abstractmethod
    def gates(self, step: Step, layer: int, count: int) -> list[list[tuple[int, float]]]:
        """Of each token, its `count` first foreseen experts with their foreseen weights, heaviest first."""


class Recorded(Foresight):
    """A channel of the trace."""

    def __init__(self, predictor: str) -> None:
        self._predictor = self.channel = predictor

    def check(self, trace: Trace, ranks: int, layers: int = 1) -> None:
        name, known = self._predictor, list(trace.predicted)
        if name not in known:
            hint = nearest(name, known) if known else "the trace carries no predictions"
            raise ConfigError(
                f"policy: predictor {name!r} is not in the trace: {hint}; predictor={SYNTHETIC} works on every trace"
            )
        recorded = trace.predicted[name].ranking.shape[2]
        if ranks > recorded > trace.top_k:
            raise ConfigError(f"policy: predictor {name!r} ranks {recorded} experts, but {ranks} are asked for")
        reach = trace.metadata.predictors[name].layer_offset
        if layers > reach:
            raise ConfigError(f"policy: predictor {name!r} foresees {reach} layers ahead, but {layers} are asked for")

    def offset(self, step: Step) -> int:
        return step.layer_offset(self._predictor)

    def foresees(self, step: Step, layer: int) -> bool:
        return bool(step.predicted(self._predictor, layer))

    def ranking(self, step: Step, layer: int, count: int) -> list[int]:
        return step.predicted(self._predictor, layer, count)

    def check_weights(self, trace: Trace) -> None:
        if trace.predicted[self._predictor].scores is None:
            raise ConfigError(f"policy: predictor {self._predictor!r} has no scores in the trace, so no weights")

    def gates(self, step: Step, layer: int, count: int) -> list[list[tuple[int, float]]]:
        return step.predicted_gates(self._predictor, layer, count)


class Synthetic(Foresight):
    """A predictor of known accuracy: it reads the truth and spoils it.

    The true experts are ranked heaviest first. Each keeps its place with probability `recall`; else some expert that
    was not chosen, drawn evenly, has the place, and the true one is tried again behind all others. So the recall at
    top-k is `recall`, whatever the expert's weight, and each further rank finds one of the missed with that
    probability. Draws are a hash of seed, request, position, layer and rank: a token's prediction is the same in
    every stretch of the trace, under every policy and on every machine. The first layer is not foreseen. It
    says what a predictor of that accuracy would be worth, not that there is one.
    """

    reads_ahead = True

    def __init__(self, recall: str = "0.9", seed: int = 0) -> None:
        try:
            self._recall = [float(each) for each in recall.split("/")]
        except ValueError:
            self._recall = [-1.0]
        if not all(0 <= each <= 1 for each in self._recall):
            raise ConfigError(f"policy: synthetic[recall={recall}]: expected 0 to 1, such as 0.9 or 0.6/0.9")
        self._seed = seed
        self._step: Step | None = None
        self._known: dict[tuple[int, int], list[int]] = {}

    def check(self, trace: Trace, ranks: int, layers: int = 1) -> None:
        """Works on every trace, any number of layers ahead."""

    def offset(self, step: Step) -> int:
        return 1

    def foresees(self, step: Step, layer: int) -> bool:
        return layer > 0

    def ranking(self, step: Step, layer: int, count: int) -> list[int]:
        if step is not self._step:
            self._step, self._known = step, {}
        known = self._known.get((layer, count))
        if known is None:
            tokens = self.by_token(step, layer, count)
            if len(tokens) == 1:
                known = tokens[0]
            else:
                known = list(dict.fromkeys(t[rank] for rank in range(count) for t in tokens if rank < len(t)))
            self._known[layer, count] = known
        return known

    def by_token(self, step: Step, layer: int, count: int) -> list[list[int]]:
        """The ranking of each token, apart."""
        recall = self._recall[min(layer - 1, len(self._recall) - 1)]
        return [
            _spoiled([e for e, _ in gates], step.experts, count, recall, (self._seed, request, position, layer))
            for gates, (request, position) in zip(step.gates(layer), step.places, strict=True)
        ]

    def gates(self, step: Step, layer: int, count: int) -> list[list[tuple[int, float]]]:
        return [
            list(zip(ranking, [weight for _, weight in true], strict=False))
            for ranking, true in zip(self.by_token(step, layer, count), step.gates(layer), strict=True)
        ]


def _spoiled(true: list[int], experts: int, count: int, recall: float, place: tuple[int, ...]) -> list[int]:
    """`count` ranks of one token."""
    state = hashed(place)
    wrong_left = experts - len(true)
    chosen, waiting = set(true), list(reversed(true))
    ranked: list[int] = []
    missed: list[int] = []
    while len(ranked) < min(count, experts):
        if not waiting:
            waiting, missed = list(reversed(missed)), []
        state = mixed(state)
        if waiting:
            expert = waiting.pop()
            if state < recall * 2**64 or not wrong_left:
                ranked.append(expert)
                continue
            missed.append(expert)
        elif not wrong_left:
            break
        while True:
            state = mixed(state)
            expert = state * experts >> 64
            if expert not in chosen:
                break
        chosen.add(expert)
        wrong_left -= 1
        ranked.append(expert)
    return ranked


def foresight(text: str) -> Foresight:
    """What a parameter `predictor` names. Raises ConfigError for a malformed one."""
    name, bracket, inside = text.partition("[")
    if name != SYNTHETIC:
        return Recorded(text)
    arguments = {"recall": "0.9", "seed": "0"}
    if bracket:
        for part in inside.removesuffix("]").split(","):
            key, _, value = part.partition("=")
            if key.strip() not in arguments:
                raise ConfigError(f"policy: {text}: no parameter {key.strip()!r}: {nearest(key.strip(), arguments)}")
            arguments[key.strip()] = value.strip()
    try:
        seed = int(arguments["seed"])
    except ValueError:
        raise ConfigError(f"policy: {text}: seed={arguments['seed']}: expected a whole number") from None
    return Synthetic(arguments["recall"], seed)


def wanted_ranks(top_k: int, overfetch: float) -> int:
    """How many ranks of a token's prediction are copied: top-k times the overfetch, rounded up."""
    return ceil(top_k * overfetch - 1e-9)
