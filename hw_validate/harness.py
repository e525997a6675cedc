"""Where a validation runs, and how a cell of its plan becomes a job of the replay loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hw_validate.grid import Plan, Planned, Validation
from hw_validate.worlds import Job, job
from moesim.run_config import RunConfig

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Harness:
    """Where a validation runs: the folder, the device, and how it is told."""

    validation: Validation
    plan: Plan
    folder: Path
    device: str
    tell: Tell

    @property
    def profile_path(self) -> Path:
        """The calibration of this machine."""
        return self.folder / f"{self.validation.hardware}.yaml"

    def job(self, planned: Planned) -> Job:
        """A cell's inputs, loaded and decided."""
        cell = planned.cell
        every_step = cell.warmup_steps + cell.measured_steps + planned.instrumented_steps
        batch = cell.batch_tokens
        config = RunConfig(
            trace=planned.trace, model=planned.model, hardware=str(self.profile_path), engine=self.validation.engine,
            policy=cell.policy, cache_fraction=cell.cache_fraction,
            context_tokens=cell.context_tokens if cell.phase == "decode" else None,
            warmup_tokens=cell.warmup_steps * batch,
            measured_tokens=(every_step - cell.warmup_steps) * batch if cell.phase == "decode" else None,
        )
        return job(config, cell.warmup_steps, cell.measured_steps, planned.instrumented_steps)
