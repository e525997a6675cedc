"""The file that `moesim quality` leaves, `NAME.quality.json`, and a policy's cost looked up in it. Needs no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from moesim.errors import InputError
from moesim.policies.composition import split_call
from moesim.trace_metadata import TraceMetadata

SUFFIX = ".quality.json"
DEFAULT_PREDICTOR = "residual+default-vectors"
# What a policy may say that changes which bytes are copied and when, and nothing of what is computed.
_STATELESS_IGNORE = frozenset({"evict", "key", "count"})

Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class Interval(_Model):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class Measured(_Model):
    """One mode on the whole text."""

    mode: str
    """The policy that executes so; `true` is speculation off."""
    predictor: str | None
    parameters: dict[str, JsonValue]
    """All that was chosen for the mode."""
    variant: dict[str, JsonValue]
    """Those of the parameters that differ from the mode's defaults."""
    cache_fraction: Share | None
    """None: the outcome does not depend on a cache."""
    passes: Literal["whole", "stepped"]
    """`whole`: a block is one forward pass; `stepped`: one per decoded token, in order."""
    perplexity: Interval
    perplexity_increase: Interval
    """Relative to the true model on the same tokens through the same kind of pass: 0.01 is one per cent more."""
    kl_nats: Interval
    """Mean over tokens of the divergence of the mode's next-token distribution from the true one, KL(true || mode)."""
    top1_agreement: Interval
    """Share of tokens after which both name the same likeliest token."""
    weight_executed: Share | None
    """Share of the gate weight of the mode's choice that ran in full precision; None where all of it always does."""


class Text(_Model):
    """What was read."""

    source: str
    sha256: Sha256
    """Of the token ids, 64-bit little-endian."""
    tokens: int = Field(ge=1)
    """In all blocks, prompts included."""
    tokens_measured: int = Field(ge=1)
    blocks: int = Field(ge=1)
    block_tokens: int = Field(ge=2)
    prompt_tokens: int = Field(ge=1)
    """At the start of each block, routed truly and not measured."""
    warmup_tokens: int = Field(ge=0)
    """Of each lane, decoded after its first prompt and not measured: its cache starts cold."""
    lanes: int = Field(ge=1)
    """Sequences decoded side by side, each with a cache of its own."""


class Method(_Model):
    """How intervals were made."""

    description: str
    confidence: float
    resamples: int
    seed: int


class Quality(_Model):
    """What lossy execution costs one model on one text."""

    format: Literal["moesim-quality/1"] = "moesim-quality/1"
    model: str
    weights_sha256: Sha256
    layers: int
    experts: int
    top_k: int
    dtype: str
    device: str
    text: Text
    fitted: dict[str, JsonValue]
    """By kind, where what was fitted comes from: text, tokens, hash."""
    method: Method
    measured: list[Measured]
    left_out: list[str]
    """Modes that this model or what was fitted does not allow, each with the reason."""
    recorder_version: str

    def cost_of(self, policy: str, cache_fraction: float, *, open_loop: bool = False) -> Interval | None:
        """The relative increase of perplexity under a policy, or None where it was not measured.

        `policy` is written as for `moesim run`. A mode that needs no cache costs the same at every cache fraction.
        Decoding is closed loop, so that is what a policy costs, even where its replay is open loop; with `open_loop`
        the cost that open loop would have.
        """
        for each in self.measured:
            if _is_of(each, policy, cache_fraction, open_loop=open_loop):
                return each.perplexity_increase
        return None


def load(path: Path) -> Quality:
    """Read a file of `moesim quality`.

    Raises:
        InputError: no such file, or not one of ours; one line that names the first field that is wrong.
    """
    try:
        return Quality.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `moesim quality` writes it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None


def beside(trace: Path, name: str, provenance: Mapping[str, Any]) -> Quality | None:
    """The quality of the model of a trace, from `NAME.quality.json` beside it; None where there is no such file.

    `name` and `provenance` are those of the trace's metadata: where they say which weights it was recorded from, these
    are the weights that must have been measured.

    Raises:
        InputError: the file is not one of ours, or of other weights.
    """
    path = trace.with_name(f"{name}{SUFFIX}")
    if not path.exists():
        return None
    quality = load(path)
    recorded = _weights(provenance)
    if recorded not in (None, quality.weights_sha256):
        raise InputError(
            f"{path}: measured on weights {quality.weights_sha256[:12]}…, {trace.name} was recorded from "
            f"{str(recorded)[:12]}…: measure again, or move the file away"
        )
    return quality


def stand_in(path: Path, metadata: TraceMetadata) -> Quality:
    """The quality of another model of the shape of a trace's: what there is where the weights themselves are lost.

    Raises:
        InputError: the file is not one of ours, or of a model of another shape.
    """
    quality = load(path)
    for what in ("layers", "experts", "top_k"):
        ours, theirs = getattr(metadata, what), getattr(quality, what)
        if ours != theirs:
            raise InputError(f"{path}: measured on a model with {what} = {theirs}, {metadata.name} has {ours}")
    return quality


def recorded_from(weights_sha256: str, provenance: Mapping[str, Any]) -> bool:
    """Whether a trace's provenance says that it was recorded from these weights; one that says nothing does not."""
    return bool(_weights(provenance) == weights_sha256)


def _weights(provenance: Mapping[str, Any]) -> Any:
    training = provenance.get("training")
    return provenance.get("weights_sha256", training.get("weights_sha256") if isinstance(training, dict) else None)


def cost_of(
    quality: Quality, policy: str, cache_fraction: float, *, open_loop: bool = False
) -> float | None:
    """The value alone of `Quality.cost_of`."""
    found = quality.cost_of(policy, cache_fraction, open_loop=open_loop)
    return None if found is None else found.value


def as_json(quality: Quality) -> str:
    """Canonical JSON: equal results give equal text."""
    return json.dumps(quality.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _is_of(measured: Measured, policy: str, cache_fraction: float, *, open_loop: bool) -> bool:
    name, arguments = split_call(policy)
    variant = dict(measured.variant)
    if (variant.pop("loop", "closed") == "open") is not open_loop or name != measured.mode:
        return False
    if measured.predictor is not None and arguments.pop("predictor", DEFAULT_PREDICTOR) != measured.predictor:
        return False
    if measured.cache_fraction is None:
        arguments = {key: value for key, value in arguments.items() if key not in _STATELESS_IGNORE}
    elif abs(measured.cache_fraction - cache_fraction) > 1e-9:
        return False
    return _alike(arguments, variant, measured.parameters)


def _alike(arguments: Mapping[str, str], variant: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Every argument is a parameter with that value, and every parameter that is not a default is an argument."""
    said = all(key in parameters and value == _text(parameters[key]) for key, value in arguments.items())
    return said and all(key in arguments for key in variant)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
