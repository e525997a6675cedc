"""A stream as a run's configuration names it, checked against trace, model and the memory that it may use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.replay import StepOutcome
from moesim.requests.arrivals import poisson, read_arrivals
from moesim.requests.latency import Latency
from moesim.requests.recorded import Request, recorded_requests
from moesim.requests.scheduler import Limits, Scheduler
from moesim.trace import Trace

MOST_COUNTED = 1_000_000_000
"""Of tokens or requests: their products with bytes and nanoseconds stay within 64 bits."""


class StreamConfig(BaseModel):
    """A stream of requests: arrivals by a rate or from a file, and what the scheduler may put into a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arrivals_per_s: float | None = Field(default=None, gt=0, le=1e9)
    """The rate of a Poisson process."""
    arrivals: Path | None = None
    """A file of arrivals instead (`moesim.requests.arrivals`)."""
    arrival_seed: int = Field(default=0, ge=0)
    requests: int | None = Field(default=None, ge=1, le=MOST_COUNTED)
    """How many arrive; by default as many as were recorded, or as the file holds."""
    warmup_requests: int = Field(default=0, ge=0, le=MOST_COUNTED)
    """The first so many are served and not counted."""
    max_batch: int = Field(default=8, ge=1, le=MOST_COUNTED)
    """The most sequences at once."""
    max_prefill_tokens: int = Field(default=2048, ge=1, le=MOST_COUNTED)
    """The most prompt tokens of a step of several prompts; one prompt runs whole, however long."""
    kv_tokens: int | None = Field(default=None, ge=1, le=MOST_COUNTED)
    """KV cache reserved for so many tokens; None leaves it whatever dense weights and slots leave of the card."""
    cache_rest: bool = False
    """The slots of experts take what dense weights and `kv_tokens` leave of the card, instead of a given share."""

    @model_validator(mode="after")
    def _consistent(self) -> "StreamConfig":
        if (self.arrivals_per_s is None) == (self.arrivals is None):
            raise ValueError("give arrivals_per_s or arrivals, one of them")
        if self.arrivals is not None and self.arrival_seed:
            raise ValueError("arrival_seed draws arrivals_per_s: a file of arrivals has nothing to draw")
        if self.cache_rest and self.kv_tokens is None:
            raise ValueError("cache rest: give kv_tokens, the KV cache beside which slots take the rest of the card")
        return self


def reserved_kv_bytes(model: ModelSpec, tokens: int) -> int:
    """KV cache for so many tokens, each in every layer: what a sequence within a sliding window needs."""
    return tokens * model.kv_bytes_per_token * model.layers


def rest_fraction(kv_tokens: int, model: ModelSpec, memory_bytes: int) -> float:
    """The share of all experts that has a slot when slots take what dense weights and `kv_tokens` leave of the card.

    Raises:
        ConfigError: no room for the experts of one token.
    """
    kv_bytes = reserved_kv_bytes(model, kv_tokens)
    slots = max(0, memory_bytes - model.dense_bytes - kv_bytes) // model.expert_bytes
    if slots < model.top_k:
        raise ConfigError(
            f"cache rest: {model.dense_bytes:,} bytes of dense weights and {kv_bytes:,} of kv_tokens {kv_tokens:,} "
            f"leave {slots} slots of {memory_bytes:,} bytes, fewer than top-k {model.top_k}"
        )
    everything = len(model.moe_layers) * model.experts
    return min(slots, everything) / everything


@dataclass(frozen=True, eq=False)
class Serving:
    """A stream that can be served."""

    config: StreamConfig
    trace: Trace
    requests: list[Request]
    limits: Limits

    def scheduler(self, observe: Callable[[StepOutcome], None]) -> Scheduler:
        """Before the first arrival. `observe` is told the steps of the measuring window."""
        latency = Latency(self.requests, self.config.warmup_requests)
        return Scheduler(self.trace, self.requests, self.limits, latency, observe)

    def kv_bytes_held(self, scheduler: Scheduler) -> int:
        """KV cache that counts as VRAM: what was reserved, or else the most that was admitted at once."""
        return scheduler.kv_peak_bytes if self.config.kv_tokens is None else self.limits.kv_bytes

    def columns(self) -> dict[str, int | float | str | None]:
        """What was asked for, as columns of a row."""
        config = self.config
        return {
            "arrivals": "poisson" if config.arrivals is None else config.arrivals.name,
            "arrivals_per_s": config.arrivals_per_s,
            "arrival_seed": config.arrival_seed if config.arrivals is None else None,
            "requests": len(self.requests),
            "max_batch": config.max_batch,
            "kv_tokens": config.kv_tokens,
            "kv_capacity_bytes": self.limits.kv_bytes,
        }


def serve(
    config: StreamConfig, trace: Trace, model: ModelSpec, free_bytes: int, context_tokens: int | None
) -> Serving:
    """Check a stream. `free_bytes` is what dense weights and slots leave of the card.

    With `context_tokens`, every decoding sequence is that long, and its KV cache with it.

    Raises:
        ConfigError: a file of arrivals that breaks a rule, more requests or tokens than there are, or a request whose
            KV cache can never fit.
    """
    if config.arrivals is not None:
        arrivals = read_arrivals(config.arrivals)
        if config.requests is not None and config.requests > len(arrivals):
            raise ConfigError(f"{config.arrivals}: {len(arrivals)} arrivals: requests asks for {config.requests}")
        arrivals = arrivals[: config.requests]
    else:
        assert config.arrivals_per_s is not None, "one of both is given"
        recorded = len(set(trace.request[:].tolist()))
        arrivals = poisson(config.arrivals_per_s, config.requests or recorded, config.arrival_seed)
    if config.warmup_requests >= len(arrivals):
        raise ConfigError(f"warmup_requests {config.warmup_requests}: the stream has {len(arrivals)} requests")
    requests = recorded_requests(trace, arrivals)
    pool = free_bytes if config.kv_tokens is None else reserved_kv_bytes(model, config.kv_tokens)
    needed = []
    for request in requests:
        tokens = request.context_tokens(len(request.decode))
        if context_tokens is not None and len(request.decode):
            tokens = max(request.context_tokens(0), context_tokens)
        needed.append(model.kv_bytes(tokens))
        if needed[-1] > pool:
            where = "the card has" if config.kv_tokens is None else f"kv_tokens {config.kv_tokens:,} are"
            raise ConfigError(
                f"request {request.number}: {tokens:,} tokens need {needed[-1]:,} bytes of KV cache: "
                f"{where} {max(0, pool):,}, so it would wait for ever"
            )
    return Serving(config, trace, requests, Limits(config.max_batch, config.max_prefill_tokens, pool, needed))
