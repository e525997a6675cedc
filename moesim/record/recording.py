"""What a recorder leaves: the arrays of a trace, before anyone has said what model and text they are of.

It needs no torch, so a recording made on a GPU machine can be written as a trace anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from moesim.trace import Prediction, Trace, TraceMetadata

_PREDICTED = "predicted."
_SCORES = ".scores"


@dataclass(frozen=True, eq=False)
class Recording:
    """The arrays of a trace (shapes and types as in `moesim.trace.Trace`), rows in the order of execution.

    `predicted` maps a predictor's name to its ranking [T, L, M] and, where kept, the router probabilities of the same.
    """

    experts: NDArray[Any]
    weights: NDArray[Any]
    step: NDArray[Any]
    request: NDArray[Any]
    position: NDArray[Any]
    phase: NDArray[Any]
    scores: NDArray[Any] | None
    predicted: Mapping[str, tuple[NDArray[Any], NDArray[Any] | None]]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name in a trace file."""
        names = ("experts", "weights", "step", "request", "position", "phase")
        named: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in names}
        if self.scores is not None:
            named["scores"] = self.scores
        for name, (ranking, scores) in self.predicted.items():
            named[_PREDICTED + name] = ranking
            if scores is not None:
                named[_PREDICTED + name + _SCORES] = scores
        return named

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Recording":
        """What `arrays` gave."""
        left = dict(arrays)
        names = [n for n in left if n.startswith(_PREDICTED) and not n.endswith(_SCORES)]
        predicted = {n.removeprefix(_PREDICTED): (left.pop(n), left.pop(n + _SCORES, None)) for n in names}
        return cls(scores=left.pop("scores", None), predicted=predicted, **left)

    def select(self, rows: NDArray[np.intp]) -> "Recording":
        """The rows with these indices, in their order."""
        return Recording.of_arrays({name: array[rows] for name, array in self.arrays().items()})

    def trace(self, metadata: TraceMetadata) -> Trace:
        """The recording as a trace of what `metadata` describes.

        Raises:
            TraceError: the metadata describe another routing shape or other predictors.
        """
        return Trace(
            experts=self.experts,
            weights=self.weights,
            step=self.step,
            request=self.request,
            position=self.position,
            phase=self.phase,
            scores=self.scores,
            predicted={name: Prediction(ranking, scores) for name, (ranking, scores) in self.predicted.items()},
            metadata=metadata,
            path=None,
        )

    def save(self, path: Path) -> None:
        """Write the bare arrays as safetensors, without the metadata that makes them a trace."""
        save_file({name: np.ascontiguousarray(array) for name, array in self.arrays().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read what `save` wrote."""
        return cls.of_arrays(load_file(path))


def joined(parts: Sequence[Recording]) -> Recording:
    """The rows of recordings of one model, one after another."""
    named = [part.arrays() for part in parts]
    return Recording.of_arrays({name: np.concatenate([each[name] for each in named]) for name in named[0]})
