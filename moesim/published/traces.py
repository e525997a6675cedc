"""Which trace stands for a paper's model: recorded where there is a recording, synthetic and labelled so elsewhere.

    reference-16x64: {model: olmoe-1b-7b, file: ../traces/reference-16x64.safetensors}
    olmoe: {model: olmoe-1b-7b, recording: nvmoe/olmoe-all.tokens.jsonl, words: ...}    # in the folder of --traces
    mixtral-synthetic: {model: mixtral-8x7b, synthetic: {overlap: 0.37, busiest: 0.16}, words: ...}
    worst-case: {model: switch-base-128, in_turn: {first_layer: 17, other_layers: 1, steps: 512}, words: ...}

Recordings that others made are not part of this repository; claims that need one say so where it is absent.
"""

from os.path import normpath
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.catalogue import find, is_file
from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.published.in_turn import InTurn, in_turn
from moesim.trace import Trace
from moesim.trace_batch import batch_decode
from moesim.trace_import import Labels, import_trace
from moesim.trace_synthetic import SyntheticSpec, synthesize
from moesim.yaml_file import line_of, read_model


class Drawn(BaseModel):
    """A synthetic trace of the model's shape (trace_synthetic.py has the process)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap: float
    busiest: float
    requests: int = Field(default=4, ge=1)
    prompt_tokens: int = Field(default=64, ge=0)
    decode_tokens: int = Field(default=128, ge=1)
    seed: int = Field(default=0, ge=0)


class TraceSource(BaseModel):
    """One trace by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    words: str = Field(min_length=1)
    """What it is and where it comes from, for the page."""
    file: Path | None = None
    """A trace, relative to the file that names it."""
    recording: Path | None = None
    """Somebody else's recording, relative to the folder of recordings."""
    tokens: int | None = Field(default=None, ge=2)
    """Only so many rows of the recording."""
    synthetic: Drawn | None = None
    in_turn: InTurn | None = None
    batch: int | None = Field(default=None, ge=2)
    """Decode so many of its requests side by side, and leave prefill out."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TraceSource":
        if sum(origin is not None for origin in (self.file, self.recording, self.synthetic, self.in_turn)) != 1:
            raise ValueError("a trace has one of file, recording, synthetic and in_turn")
        return self


class TraceSources(BaseModel):
    """configs/published-traces.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: Path
    """What lossy execution costs the reference model, as `moesim quality` left it."""
    traces: dict[str, TraceSource]


def load_sources(path: Path) -> TraceSources:
    """Read the file.

    Raises:
        ConfigError: an unknown key, model, or file that is not there.
    """
    sources = read_model(path, TraceSources)
    for name, source in sources.traces.items():
        try:
            find("models", source.model)
            if source.file is not None and not is_file(beside(path, source.file)):
                raise ConfigError(f"file = {source.file}: no such file")
        except ConfigError as error:
            raise ConfigError(f"{path}{line_of(path, 'traces', name)}: traces.{name}: {error}") from None
    return sources


def beside(path: Path, relative: Path) -> Path:
    """A path that a configuration gives relative to itself."""
    return Path(normpath(path.parent / relative))


def made_ready(source: TraceSource, path: Path, recordings: Path | None, work: Path, name: str) -> Path | None:
    """The trace as a file that a run can open; made in the folder `work` if it must be made. None: not to be had.

    Raises:
        TraceError: the recording cannot be imported.
    """
    if source.file is not None and source.batch is None:
        return beside(path, source.file)
    trace = _trace(source, path, recordings, name)
    if trace is None:
        return None
    out = work / f"{name}.safetensors"
    (trace if source.batch is None else batch_decode(trace, source.batch)).save(out)
    return out


def _trace(source: TraceSource, path: Path, recordings: Path | None, name: str) -> Trace | None:
    """What `batch` makes batches of."""
    if source.file is not None:
        return Trace.load(beside(path, source.file))
    model = ModelSpec.load(source.model)
    if source.synthetic is not None:
        spec = SyntheticSpec(
            layers=len(model.moe_layers), experts=model.experts, top_k=model.top_k, model=model.name,
            moe_layers=tuple(model.moe_layers), **source.synthetic.model_dump(),
        )
        return synthesize(spec)[0]
    if source.in_turn is not None:
        return in_turn(source.in_turn, model, name)
    assert source.recording is not None, "validated"
    if recordings is None or not is_file(recordings / source.recording):
        return None
    trace = import_trace(recordings / source.recording, labels=Labels(name=name, experts=model.experts))
    return trace if source.tokens is None else trace.slice(0, min(source.tokens, trace.tokens))
