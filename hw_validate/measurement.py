"""What a validation leaves on disk: one JSON file per cell of the grid, one for the machine, one for the limits.

A *cell* is one configuration run in both worlds. Its measurement is kept beside what the simulator said of it, so that
a comparison needs neither GPU nor simulator. Times are integer nanoseconds, means are floats, energy is in joules.
"""

import json
import re
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from moesim.atomic_write import atomic_write
from moesim.errors import ConfigError
from moesim.yaml_file import check

Kind = TypeVar("Kind", bound=BaseModel)
Phase = Literal["decode", "prefill"]
TIME_CLASSES = ("attention", "experts", "exposed_copy", "host", "idle")
"""The named sum, in the order in which an instant is given to the first class that applies."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(_Frozen):
    """One configuration of the grid."""

    model: str
    """A name of configs/models."""
    layers: int = Field(ge=1)
    """Layers that were run: fewer than the model's own where pinned memory does not hold them all."""
    layers_of_model: int = Field(ge=1)
    trace: str
    synthetic: bool
    """The trace is synthetic, not recorded."""
    policy: str
    cache_fraction: float
    batch_tokens: int = Field(ge=1)
    """Sequences decoded together, one token each."""
    context_tokens: int = Field(ge=1)
    """Keys and values that each sequence's attention reads: a constant. In prefill: the tokens of the step."""
    warmup_steps: int = Field(ge=0)
    measured_steps: int = Field(ge=1)
    phase: Phase = "decode"

    @property
    def name(self) -> str:
        """A file name for the cell: every property that tells two cells of one grid apart."""
        policy = re.sub(r"[^A-Za-z0-9.]+", "-", self.policy).strip("-")
        return f"{self.model}.{policy}.{self.cache_fraction:g}.{self.phase}.batch{self.batch_tokens}"


class World(_Frozen):
    """What one world, measured or simulated, says of a cell. Counts and times are of the measured steps alone."""

    step_ns: list[int]
    """Time of each measured step, in order; the TPOT is their mean."""
    hits: int
    misses: int
    bytes_copied: int
    attention_ns: float | None = None
    """Mean per step of each class of the named sum; measured on separate, instrumented steps."""
    experts_ns: float | None = None
    exposed_copy_ns: float | None = None
    host_ns: float | None = None
    idle_ns: float | None = None

    @property
    def tpot_ns(self) -> float:
        """Mean time of a measured step."""
        return sum(self.step_ns) / len(self.step_ns)


class Telemetry(_Frozen):
    """What NVML sampled beside the measured steps; None where the machine does not tell."""

    samples: int
    power_mean_w: float | None = None
    power_max_w: float | None = None
    energy_j: float | None = None
    """Over the measured steps."""
    sm_clock_mean_mhz: float | None = None
    sm_clock_min_mhz: float | None = None
    memory_clock_mean_mhz: float | None = None
    temperature_max_c: float | None = None
    link_receive_bytes_per_s: float | None = None
    """Host to device, as the driver counts it."""
    throttle_reasons: list[str] = []
    """Reasons that slow the clocks; idling and application settings are none."""

    @property
    def throttled(self) -> bool:
        """Whether the run is marked."""
        return bool(self.throttle_reasons)


class Measurement(_Frozen):
    """A cell, run in both worlds."""

    cell: Cell
    measured: World
    simulated: World
    lossless: bool
    timing_dependent: bool
    """The policy's decisions depend on the clock, so that the sequences may differ."""
    executed: int
    """Experts that the kernels logged as executed, by the tag in their slot, in order."""
    executed_differently: int
    """... of which so many, place by place, are not those that the simulator executed."""
    decisions_compared: int
    """Hits, misses, victims and copies of every event, compared with the simulator's, in order."""
    decisions_different: int
    telemetry: Telemetry
    output_sha256: str = ""
    """Of the final hidden states of the first `output_steps` steps: equal among lossless policies of one trace."""
    output_steps: int = 0


class MachineFacts(_Frozen):
    """The machine as it was found; nothing of it was changed."""

    device: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    operating_system: str
    processor: str
    processors: int
    memory_bytes: int
    gpu_memory_bytes: int
    link: str
    measured_at: str


class Limit(_Frozen):
    """Something held against what the machine could do at best, with the rule it must meet."""

    name: str
    what: str
    measured: float
    bound: float
    unit: Literal["ns", "bytes/s"]
    ratio: float
    """measured / bound."""
    target: float
    """The ratio that is asked for: at least this for rates, at most this for times."""


class Limits(_Frozen):
    """How close to the machine's limit the engine runs, and a plain engine beside it, in one run."""

    limits: list[Limit]
    baselines: dict[str, float] = {}
    """TPOT in ns of the plain engine (three copies per expert, eager, synchronous read-back), by policy."""
    engine: dict[str, float] = {}
    """TPOT in ns of this engine for the same policies, in the same run."""
    baseline_model: str = ""


class Slice(_Frozen):
    """A piece of the timeline of one token, in one world; nanoseconds since that token's begin."""

    cell: str
    world: Literal["measured", "simulated"]
    track: str
    """host, compute, copies or link."""
    name: str
    layer: int
    expert: int
    start_ns: int
    end_ns: int


class Timelines(_Frozen):
    """The same token in both worlds, for some cells."""

    slices: list[Slice]


def save(value: BaseModel, path: Path) -> None:
    """Write a model of this module as JSON, whole or not at all. Raises InputError when it cannot be written."""
    with atomic_write(path) as file:
        file.write((value.model_dump_json(indent=1) + "\n").encode())


def load(path: Path, kind: type[Kind]) -> Kind:
    """Read what `save` wrote. Raises ConfigError, one line, for a file that is not that."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise ConfigError(f"{path}: not the JSON that hw_validate wrote") from None
    return check(content, kind, path)
