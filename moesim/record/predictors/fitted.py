"""What fitting leaves: a safetensors file that knows its model, its text, its seed, and the very tokens it has seen.

Metadata: `format`, `kind`, and `about`, a JSON object with the model's class, the hash of its weights, its MoE layers,
the text with its hash, the tokens, the seed and the settings. The array `token_windows` holds the hashes of the fitted
text (token_windows.py), so that whoever records can refuse to record what was fitted on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from moesim.atomic_write import atomic_write
from moesim.errors import InputError

FORMAT: Final = "moesim-fitted/1"
WINDOWS: Final = "token_windows"


@dataclass(frozen=True, eq=False)
class Fitted:
    """One fitted predictor: its tensors, where they come from, and hashes of the tokens they were fitted on."""

    kind: str
    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any]
    windows: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def save(self, path: Path) -> None:
        """Write it whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        arrays[WINDOWS] = torch.from_numpy(self.windows.view(np.int64))
        metadata = {"format": FORMAT, "kind": self.kind, "about": json.dumps(dict(self.about), sort_keys=True)}
        with atomic_write(path) as file:
            file.write(save(arrays, metadata))

    @classmethod
    def load(cls, path: Path, kind: str | None = None, weights_sha256: str | None = None) -> "Fitted":
        """Read what `save` wrote, of any kind or the given one.

        With `weights_sha256`, only if it was fitted on a model with these weights.

        Raises:
            InputError: no such file, another format or kind, or another model's.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as safetensors: {error}") from None
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path}: format {metadata.get('format')!r}: `moesim fit` writes {FORMAT!r}")
        if kind not in (None, metadata["kind"]):
            raise InputError(f"{path}: it holds {metadata['kind']}, not {kind}")
        about = json.loads(metadata["about"])
        if weights_sha256 is not None and about["weights_sha256"] != weights_sha256:
            raise InputError(
                f"{path}: fitted on weights {about['weights_sha256'][:12]}…, the model has {weights_sha256[:12]}…: "
                "fit again"
            )
        windows = tensors.pop(WINDOWS).numpy().view(np.uint64)
        return cls(metadata["kind"], tensors, about, windows)
