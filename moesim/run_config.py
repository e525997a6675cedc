"""What one run depends on, and its name by content: equal hashes, equal rows."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

import moesim
from moesim.catalogue import find
from moesim.device_choice import Asked
from moesim.policies.composition import files as policy_files
from moesim.requests.serving import MOST_COUNTED, StreamConfig
from moesim.window import trace_hash


class RunConfig(BaseModel):
    """What one run depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace: Path
    model: str
    hardware: str
    policy: str
    cache_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    host_cache_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of all experts that host memory holds; the rest is read from disk when it is copied to the GPU."""
    per_layer: bool = False
    """Split the slots evenly over the layers instead of one shared pool."""
    engine: str = "yalis"
    context_tokens: int | None = Field(default=None, ge=1, le=MOST_COUNTED)
    """A constant KV length per decode step; None takes the trace's own positions."""
    warmup_tokens: int = Field(default=64, ge=0, le=MOST_COUNTED)
    measured_tokens: int | None = Field(default=None, ge=1, le=MOST_COUNTED)
    hardware_overrides: dict[str, float] = {}
    interval: bool = True
    """Also run the two ends of the hardware's ranges."""
    device: Asked = "auto"
    """Who times the run: `auto` takes FastGPU where it applies. The row says which it was."""
    stream: StreamConfig | None = None
    """Requests that arrive by the clock, instead of the trace as it was recorded. Then `stream.warmup_requests` says
    what is not counted, not `warmup_tokens`."""
    grid: str = ""
    """Which grid of a sweep the run belongs to."""


def identity(config: RunConfig) -> dict[str, object]:
    """Everything that the run's outcome depends on, by content and not by place: equal identities, equal rows."""
    files = {
        "model": find("models", config.model),
        "hardware": find("hardware", config.hardware),
        "engine": find("engines", config.engine),
        **policy_files(config.policy),
    }
    dumped = config.model_dump(mode="json", exclude={"trace"})
    if config.host_cache_fraction == 1.0:
        del dumped["host_cache_fraction"]
    if config.stream is None:
        del dumped["stream"]
    elif config.stream.arrivals is not None:
        dumped["stream"]["arrivals"] = file_hash(config.stream.arrivals)
    return {
        **dumped,
        **{kind: Path(getattr(config, kind)).stem for kind in ("model", "hardware", "engine")},
        "moesim": moesim.__version__,
        "trace_sha256": trace_hash(config.trace),
        **{f"{kind}_sha256": file_hash(path) for kind, path in files.items()},
    }


def run_hash(config: RunConfig) -> str:
    """A name for a run: the hash of its identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=256)
def file_hash(path: Path) -> str:
    """The hash of a small file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
