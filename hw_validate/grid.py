"""What a validation runs: models, their traces, and groups of cells; configs/h200.yaml is one.

    models:
      - model: qwen3-30b-a3b
        trace: ../traces/reference-48x128.safetensors
      - model: mixtral-8x7b
        layers: 20                                                # the first: as many as host memory can hold pinned
        synthetic: {overlap: 0.4, busiest: 0.2, recall: 0.9}     # no recording at hand: labelled synthetic everywhere
        most_steps: {decode: 32}                                  # fewer measured steps for this model
    groups:
      - {policies: [lru, least-stale], cache: [10%, 25%], measured_steps: 128}
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hw_validate.measurement import Cell, Phase
from moesim.atomic_write import atomic_write
from moesim.catalogue import find
from moesim.config import cache_fraction
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import steps
from moesim.model import ModelSpec
from moesim.policies.composition import parse
from moesim.trace import Trace
from moesim.trace_batch import batch_decode, only_prefill
from moesim.trace_synthetic import PREDICTOR, SyntheticSpec, synthesize
from moesim.yaml_file import read_model


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Synthetic(_Frozen):
    """A synthetic trace in place of a recording."""

    overlap: float = Field(gt=0, lt=1)
    busiest: float = Field(gt=0, lt=1)
    recall: float = Field(gt=0, le=1)
    prompt_tokens: int = Field(default=16, ge=1)
    requests: int = Field(default=16, ge=1)
    decode_tokens: int = Field(default=64, ge=1)
    """Of each request."""


class Model(_Frozen):
    """A model, and the trace that it replays."""

    model: str
    """A name of configs/models, or a file beside the validation: YAML, or a Hugging Face config.json."""
    layers: int | None = Field(default=None, ge=1)
    """Only the first of them are run, in both worlds; for models that host memory cannot hold."""
    trace: Path | None = None
    synthetic: Synthetic | None = None
    most_steps: dict[Phase, int] = {}
    """Measured steps of a phase at most: for models whose steps are long."""
    most_warmup_steps: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if (self.trace is None) == (self.synthetic is None):
            raise ValueError(f"{self.model}: give either trace or synthetic")
        return self


class Group(_Frozen):
    """Cells that differ by policy, cache and batch."""

    policies: list[str] = Field(min_length=1)
    cache: list[float] = Field(min_length=1)
    batch: list[int] = [1]
    phase: Phase = "decode"
    warmup_steps: int = Field(default=32, ge=0)
    measured_steps: int = Field(default=128, ge=1)
    instrumented_steps: int = Field(default=4, ge=0)
    models: list[str] = []
    """Only these; empty for all."""

    @field_validator("cache", mode="before")
    @classmethod
    def _fractions(cls, values: object) -> object:
        return [cache_fraction(str(value)) for value in values] if isinstance(values, list) else values

    @field_validator("policies")
    @classmethod
    def _known(cls, policies: list[str]) -> list[str]:
        for policy in policies:
            parse(policy)
        return policies


class Validation(_Frozen):
    """What a validation's YAML may say."""

    name: str
    title: str
    hardware: str
    """The profile whose peaks and shares a calibration takes over, and whose name it gets."""
    engine: str = "graph"
    context_tokens: int = Field(ge=1)
    models: list[Model] = Field(min_length=1)
    groups: list[Group] = Field(min_length=1)
    timelines: list[str] = []
    """Cells, by name, whose last instrumented step is kept as a timeline."""
    baseline_model: str = ""
    """The model on which the plain engine is timed; empty for none."""

    @classmethod
    def load(cls, path: Path) -> "Validation":
        """Read and check. Raises ConfigError with file, line, key and value."""
        read = read_model(path, cls)
        if EngineSpec.load(read.engine).copy_thread is not None:
            raise ConfigError(f"{path}: engine = {read.engine}: no device here keeps its copies in software queues")
        names = [model.model for model in read.models]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{path}: models: {twice} is there twice; its cells would have one name")
        models = [
            model.model_copy(update={"model": str(path.parent / model.model)})
            if model.model.endswith((".yaml", ".yml", ".json")) else model
            for model in read.models
        ]
        return read.model_copy(update={"models": models})


class Planned(_Frozen):
    """A cell and what it needs."""

    cell: Cell
    model: str
    """Its name or file; the cell's is what it calls itself."""
    trace: Path
    instrumented_steps: int


class Plan:
    """The cells of a validation, by its models, with the traces that they replay written beside the results."""

    def __init__(self, validation: Validation, config_path: Path, folder: Path) -> None:
        """Write the traces. Raises InputError when one cannot be made."""
        self.validation = validation
        self._folder = folder / "traces"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._base = config_path.parent
        self.cells: dict[str, list[Planned]] = {}
        for model in validation.models:
            self.cells[model.model] = list(self._of(model))

    def _of(self, model: Model) -> Iterator[Planned]:
        whole = ModelSpec.load(model.model)
        spec, file = self._first_layers(model, whole)
        source = self._source(model, whole, spec)
        for group in self.validation.groups:
            if group.models and model.model not in group.models:
                continue
            for batch in group.batch:
                measured = min(group.measured_steps, model.most_steps.get(group.phase, group.measured_steps))
                warmup = group.warmup_steps
                if model.most_warmup_steps is not None:
                    warmup = min(warmup, model.most_warmup_steps)
                every_step = warmup + measured + group.instrumented_steps
                trace, path = self._derived(source, spec.name, group.phase, batch, every_step)
                window = list(steps(trace))
                if len(window) < every_step:
                    raise ConfigError(
                        f"{model.model}, {group.phase} in batches of {batch}: {every_step} steps asked for, "
                        f"the trace has {len(window)}"
                    )
                context = self.validation.context_tokens if group.phase == "decode" else window[0].tokens
                for policy in group.policies:
                    parsed = parse(self._with_predictor(policy, trace))
                    for fraction in group.cache:
                        cell = Cell(
                            model=spec.name, layers=spec.layers, layers_of_model=whole.layers,
                            trace=trace.metadata.name, synthetic=trace.metadata.synthetic, policy=parsed.name,
                            cache_fraction={"none": 0.0, "all": 1.0, "any": fraction}[parsed.spec.cache],
                            batch_tokens=batch,
                            context_tokens=context, warmup_steps=warmup, measured_steps=measured,
                            phase=group.phase,
                        )
                        yield Planned(
                            cell=cell, model=file, trace=path, instrumented_steps=group.instrumented_steps
                        )

    def _first_layers(self, model: Model, whole: ModelSpec) -> tuple[ModelSpec, str]:
        """The model as far as it is run, and the name or file by which it is loaded."""
        if model.layers is None or model.layers == whole.layers:
            return whole, model.model
        if model.layers > whole.layers:
            raise ConfigError(f"{model.model}: layers = {model.layers}: it has {whole.layers}")
        part = whole.first_layers(model.layers)
        path = self._folder / f"{whole.name}.{model.layers}-layers.yaml"
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(part.model_dump(mode="json", exclude_defaults=True), sort_keys=False).encode())
        return part, str(path)

    def _source(self, model: Model, whole: ModelSpec, spec: ModelSpec) -> Trace:
        if model.trace is not None:
            trace = Trace.load(self._base / model.trace)
            if model.layers is None:
                return trace
            if trace.layers != len(whole.moe_layers):
                raise ConfigError(
                    f"{trace.label}: {trace.layers} MoE layers, {whole.name} has {len(whole.moe_layers)}"
                )
            return trace.first_layers(len(spec.moe_layers))
        wanted = model.synthetic
        assert wanted is not None, "one of both is given"
        trace, _ = synthesize(
            SyntheticSpec(
                layers=len(spec.moe_layers), experts=spec.experts, top_k=spec.top_k, overlap=wanted.overlap,
                busiest=wanted.busiest, decode_tokens=wanted.decode_tokens, prompt_tokens=wanted.prompt_tokens,
                requests=wanted.requests, model=spec.name, moe_layers=tuple(spec.moe_layers), recall=wanted.recall,
            )
        )
        name = f"synthetic-recall-{wanted.recall:g}"  # `synthetic` alone names a predictor that reads the truth
        return replace(
            trace, predicted={name: trace.predicted[PREDICTOR]},
            metadata=trace.metadata.model_copy(update={"predictors": {name: trace.metadata.predictors[PREDICTOR]}}),
        )

    def _derived(self, source: Trace, model: str, phase: Phase, batch: int, count: int) -> tuple[Trace, Path]:
        """The first `count` steps of one phase and batch as a trace of their own, made once for each source."""
        of_source = source.content_hash()[:8]
        path = self._folder / f"{model}.{phase}.batch{batch}.{count}-steps.{of_source}.safetensors"
        if not path.exists():
            whole = batch_decode(source, batch) if phase == "decode" else only_prefill(source)
            whole.slice(0, sum(step.tokens for step in islice(steps(whole), count))).save(path)
        return Trace.load(path), path

    @staticmethod
    def _with_predictor(policy: str, trace: Trace) -> str:
        """The policy; told to read the channel that a synthetic trace has, if it reads one that is not there."""
        try:
            parse(policy).check(trace)
        except ConfigError:
            if not trace.metadata.synthetic:
                raise
            return f"{policy}[predictor={next(iter(trace.predicted))}]"
        return policy


def config_path(name_or_path: str) -> Path:
    """A validation of configs/ by name, or a file. Raises ConfigError when there is none."""
    return find("", name_or_path)
