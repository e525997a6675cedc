"""What a trace says about itself: the model's routing shape, its predictors and where it comes from.

Kept as one JSON string in the safetensors header, under the key `moesim`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from moesim.errors import TraceError, nearest

FORMAT = "moesim-trace/1"
_TEXTS = ("name", "dataset", "tokenizer", "recorder", "recorder_version", "licence", "source", "notes")

Decoding = Literal["teacher-forced", "greedy", "sampled", "unknown"]


class Availability(BaseModel):
    """When a predictor's ranking for a layer exists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer_offset: int = Field(ge=0)
    """The ranking for MoE layer l is made while the token is at MoE layer l - layer_offset."""
    point: str
    """Where in that layer, in words: after its attention, before its experts."""
    description: str


class Request(BaseModel):
    """One sequence of the trace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: int = Field(ge=0)
    """Its number in the array `request`."""
    kind: str
    """What it is about, in a word: prose, code, chat."""
    prompt_tokens: int | None = Field(default=None, ge=0)
    """Length of its prompt; None where nobody knows."""


class TraceMetadata(BaseModel):
    """The metadata of a trace. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["moesim-trace/1"] = "moesim-trace/1"
    name: str = Field(min_length=1)
    model: str = Field(min_length=1)
    layers: int = Field(ge=1)
    """MoE layers: the second axis of the arrays."""
    experts: int = Field(ge=1)
    """Routed experts of a layer."""
    top_k: int = Field(ge=1)
    moe_layers: list[int]
    """The model's own number of each MoE layer, ascending."""
    predictors: dict[str, Availability] = {}
    dataset: str
    tokenizer: str
    decoding: Decoding
    """How the decode tokens were chosen."""
    recorder: str
    recorder_version: str
    licence: str
    source: str
    synthetic: bool = False
    """Routing drawn from a random process, not from a model's router."""
    requests: list[Request] = []
    notes: str = ""
    provenance: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "TraceMetadata":
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k}, but a layer has only {self.experts} experts")
        if len(self.moe_layers) != self.layers:
            raise ValueError(f"moe_layers lists {len(self.moe_layers)} layers, layers says {self.layers}")
        if any(late <= early for early, late in zip([-1, *self.moe_layers], self.moe_layers, strict=False)):
            raise ValueError(f"moe_layers ascend from 0 or more, not {self.moe_layers}")
        for name in self.predictors:
            if not name or name.endswith(".scores"):
                raise ValueError(f"a predictor cannot be called {name!r}: '.scores' names its scores")
        numbers = [each.request for each in self.requests]
        if len(set(numbers)) != len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise ValueError(f"requests lists request {twice} twice")
        if self.synthetic and not self.name.startswith("synthetic"):
            raise ValueError(f"the name of a synthetic trace starts with 'synthetic', not {self.name!r}")
        return self

    def to_json(self) -> str:
        """The canonical JSON: equal metadata give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str, where: str) -> "TraceMetadata":
        """Read what `to_json` wrote.

        Raises:
            TraceError: not JSON, another format, or a field that breaks its rule; `where` names the file.
        """
        try:
            given = json_object(text)
        except ValueError as error:
            raise TraceError(f"{where}: the metadata is not a JSON object: {error}") from None
        if given.get("format") != FORMAT:
            raise TraceError(f"{where}: metadata.format = {given.get('format')!r}: this reads {FORMAT!r}")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise TraceError(f"{where}: {first_error(error, cls)}") from None


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; ValueError if it is anything else."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    return value


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces; text stays readable."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing pydantic found, in one line: field, value and rule."""
    found = error.errors(include_url=False)[0]
    field = ".".join(["metadata", *map(str, found["loc"])])
    if found["type"] == "extra_forbidden":
        return f"{field}: unknown key: {nearest(str(found['loc'][-1]), model.model_fields)}"
    if found["type"] == "missing":
        return f"{field} is missing"
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "value_error":
        return f"{field}: {message}"
    value = repr(found["input"])
    return f"{field} = {value if len(value) <= 80 else value[:77] + '...'}: {message}"


def join_metadata(parts: Sequence[TraceMetadata], request_offsets: Sequence[int]) -> TraceMetadata:
    """The metadata of a concatenation of traces with one routing shape.

    Fields in which the parts agree stay; texts that differ are joined with '; ', decodings become unknown,
    and provenances are listed under 'concatenated'. Requests are shifted by their part's offset.

    Raises:
        TraceError: two parts say different things about one request.
    """
    first = parts[0]
    requests: dict[int, Request] = {}
    for part, offset in zip(parts, request_offsets, strict=True):
        for each in part.requests:
            moved = each.model_copy(update={"request": each.request + offset})
            if requests.setdefault(moved.request, moved) != moved:
                raise TraceError(
                    f"{part.name}: request {moved.request} is {each.kind!r} here and "
                    f"{requests[moved.request].kind!r} in an earlier part"
                )
    texts = {
        key: "; ".join(dict.fromkeys(getattr(part, key) for part in parts))
        for key in _TEXTS
    }
    decoding = first.decoding if all(part.decoding == first.decoding for part in parts) else "unknown"
    synthetic = any(part.synthetic for part in parts)
    if synthetic and not texts["name"].startswith("synthetic"):
        texts["name"] = f"synthetic in part: {texts['name']}"
    provenance = first.provenance
    if any(part.provenance != provenance for part in parts):
        provenance = {"concatenated": [{"name": part.name, "provenance": part.provenance} for part in parts]}
    return first.model_copy(
        update={
            **texts,
            "decoding": decoding,
            "synthetic": synthetic,
            "requests": list(requests.values()),
            "provenance": provenance,
        }
    )
