"""What an importer cannot read from a recording and whoever imports it may know."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import moesim
from moesim.errors import TraceError
from moesim.trace import Request, TraceMetadata, id_dtype
from moesim.trace_metadata import first_error


@dataclass(frozen=True)
class Labels:
    """Metadata given by hand; None leaves it to what the importer knows, and else to 'unknown'."""

    name: str | None = None
    model: str | None = None
    experts: int | None = None
    """Experts of a layer; by default one more than the largest id."""
    dataset: str | None = None
    tokenizer: str | None = None
    decoding: str | None = None
    licence: str | None = None
    source: str | None = None
    notes: str | None = None

    def metadata(
        self,
        path: Path,
        kind: str,
        moe_layers: Sequence[int],
        top_k: int,
        largest_id: int,
        requests: Sequence[Request] = (),
        notes: str = "",
        **known: Any,
    ) -> TraceMetadata:
        """The metadata of an imported trace: these labels, else `known` facts of the format, else 'unknown'.

        Raises:
            TraceError: fewer experts than the ids need, or more than a trace can hold.
        """
        experts = self.experts or known.pop("experts", None)
        if experts is None:
            experts = max(largest_id + 1, top_k)
            notes = f"{notes} The number of experts is one more than the largest id seen.".strip()
        if largest_id >= experts:
            raise TraceError(f"{path}: expert {largest_id}: with {experts} experts a layer, ids are below {experts}")
        if top_k > experts:
            raise TraceError(f"{path}: {top_k} experts per token and layer: a layer has {experts}")
        id_dtype(experts)

        def label(field: str) -> Any:
            given = getattr(self, field)
            return given or known.get(field, "unknown")

        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()

        values = {
            "name": self.name or path.name.split(".")[0] or "imported",
            **{field: label(field) for field in ("model", "dataset", "tokenizer", "decoding", "licence", "source")},
            "layers": len(moe_layers),
            "experts": experts,
            "top_k": top_k,
            "moe_layers": list(moe_layers),
            "recorder": known.get("recorder", "unknown"),
            "recorder_version": known.get("recorder_version", "unknown"),
            "requests": list(requests),
            "notes": " ".join(filter(None, [notes, self.notes])),
            "provenance": {"imported": {
                "kind": kind, "file": path.name, "sha256": digest, "by": f"moesim {moesim.__version__}",
            }},
        }
        try:
            return TraceMetadata.model_validate(values)
        except ValidationError as error:
            raise TraceError(f"{path}: {first_error(error, TraceMetadata)}") from None
