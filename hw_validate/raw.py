"""A measured cell on disk, before the simulator has been asked: what was timed, what the device did, what NVML saw."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hw_validate.measurement import Cell, Slice, Telemetry, World
from hw_validate.worlds import Deeds
from moesim.atomic_write import atomic_write
from moesim.errors import ConfigError


@dataclass(frozen=True)
class RawCell:
    """One file, `measured/<Cell.name>.npz`."""

    cell: Cell
    instrumented_steps: int
    trace_hash: str
    """The content of the trace that was replayed."""
    world: World
    telemetry: Telemetry
    deeds: Deeds
    held: list[int]
    torn: int
    output_sha256: str
    output_steps: int
    slices: list[Slice]
    """Of the last instrumented step, where a timeline was asked for."""

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all. Raises InputError when it cannot be written."""
        facts = {
            "cell": self.cell.model_dump(), "instrumented_steps": self.instrumented_steps,
            "trace_hash": self.trace_hash, "world": self.world.model_dump(),
            "telemetry": self.telemetry.model_dump(), "torn": self.torn,
            "output_sha256": self.output_sha256, "output_steps": self.output_steps,
            "slices": [each.model_dump() for each in self.slices],
        }
        copies = [copy for event in self.deeds.copies for copy in event]
        with atomic_write(folder / f"{self.cell.name}.npz") as file:
            np.savez_compressed(
                file,
                facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
                copies=np.array(copies, dtype=np.int32).reshape(-1, 2),
                copies_per_event=np.array([len(event) for event in self.deeds.copies], dtype=np.int32),
                executed=np.array([tag for event in self.deeds.executed for tag in event], dtype=np.int64),
                executed_per_event=np.array([len(event) for event in self.deeds.executed], dtype=np.int32),
                held=np.array(self.held, dtype=np.int64),
            )

    @classmethod
    def load(cls, path: Path) -> "RawCell":
        """Read what `save` wrote. Raises ConfigError, one line, for a file that is not that."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
                copies = _split(arrays["copies"], arrays["copies_per_event"])
                executed = _split(arrays["executed"], arrays["executed_per_event"])
                held = arrays["held"].tolist()
            return cls(
                cell=Cell(**facts["cell"]), instrumented_steps=facts["instrumented_steps"],
                trace_hash=facts["trace_hash"], world=World(**facts["world"]),
                telemetry=Telemetry(**facts["telemetry"]),
                deeds=Deeds([[(expert, slot) for expert, slot in event] for event in copies], executed),
                held=held, torn=facts["torn"], output_sha256=facts["output_sha256"],
                output_steps=facts["output_steps"],
                slices=[Slice(**each) for each in facts["slices"]],
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise ConfigError(f"{path}: not a whole measured cell: {type(error).__name__}") from None


def _split(values: NDArray[Any], counts: NDArray[np.int32]) -> list[list[Any]]:
    return [part.tolist() for part in np.split(values, np.cumsum(counts)[:-1])] if len(counts) else []
