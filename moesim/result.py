"""What a run reports: every metric defined once, with its unit in its name.

A row of results.parquet has the columns of `SCHEMA`, in that order; they are a contract with people's notebooks.
Hits, misses, copies and times of a token are those of the measured decode steps; `prefill_*` are those of the
prefill steps among them.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from moesim.decision import REASONS
from moesim.events import PREFILL
from moesim.replay import StepOutcome
from moesim.token_time import TokenTime

Value = int | float | str | bool | None

SCHEMA = pa.schema(
    [
        # what was run
        pa.field("grid", pa.string()),
        pa.field("policy", pa.string()),
        pa.field("model", pa.string()),
        pa.field("hardware", pa.string()),
        pa.field("trace", pa.string()),
        pa.field("device", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("cache_fraction", pa.float64()),
        pa.field("per_layer", pa.bool_()),
        pa.field("host_cache_fraction", pa.float64()),
        pa.field("host_bytes", pa.int64()),
        pa.field("context_tokens", pa.int64()),
        pa.field("batch_tokens", pa.int64()),
        pa.field("hardware_overrides", pa.string()),
        pa.field("link_bytes_per_s", pa.int64()),
        pa.field("arrivals", pa.string()),
        pa.field("arrivals_per_s", pa.float64()),
        pa.field("arrival_seed", pa.int64()),
        pa.field("requests", pa.int64()),
        pa.field("max_batch", pa.int64()),
        pa.field("kv_tokens", pa.int64()),
        # what it is
        pa.field("lossless", pa.bool_()),
        pa.field("bound", pa.bool_()),
        pa.field("open_loop", pa.bool_()),
        pa.field("clocked", pa.bool_()),
        pa.field("synthetic", pa.bool_()),
        pa.field("feasible", pa.bool_()),
        pa.field("slots", pa.int64()),
        pa.field("expert_bytes", pa.int64()),
        pa.field("kv_capacity_bytes", pa.int64()),
        pa.field("kv_peak_bytes", pa.int64()),
        pa.field("draft_bytes", pa.int64()),
        pa.field("low_precision", pa.string()),
        pa.field("slots_low", pa.int64()),
        pa.field("expert_low_bytes", pa.int64()),
        pa.field("top_share", pa.float64()),
        pa.field("slots_bottom", pa.int64()),
        pa.field("vram_bytes", pa.int64()),
        pa.field("vram_free_bytes", pa.int64()),
        # time
        pa.field("tokens_measured", pa.int64()),
        pa.field("decode_steps", pa.int64()),
        pa.field("draft_tokens", pa.int64()),
        pa.field("draft_accepted_tokens", pa.int64()),
        pa.field("accepted_mean_tokens", pa.float64()),
        pa.field("stand_in_tokens", pa.int64()),
        pa.field("tpot_draft_ns", pa.float64()),
        pa.field("tpot_mean_ns", pa.float64()),
        pa.field("tpot_fast_ns", pa.float64()),
        pa.field("tpot_slow_ns", pa.float64()),
        pa.field("tpot_p50_ns", pa.float64()),
        pa.field("tpot_p95_ns", pa.float64()),
        pa.field("tpot_p99_ns", pa.float64()),
        pa.field("ttft_mean_ns", pa.float64()),
        pa.field("ttft_p50_ns", pa.float64()),
        pa.field("ttft_p95_ns", pa.float64()),
        pa.field("ttft_p99_ns", pa.float64()),
        pa.field("tokens_per_s", pa.float64()),
        pa.field("tpot_attention_ns", pa.float64()),
        pa.field("tpot_experts_ns", pa.float64()),
        pa.field("tpot_exposed_copy_ns", pa.float64()),
        pa.field("tpot_host_ns", pa.float64()),
        pa.field("tpot_idle_ns", pa.float64()),
        pa.field("decode_total_ns", pa.int64()),
        pa.field("attention_total_ns", pa.int64()),
        pa.field("experts_total_ns", pa.int64()),
        pa.field("exposed_copy_total_ns", pa.int64()),
        pa.field("host_total_ns", pa.int64()),
        pa.field("idle_total_ns", pa.int64()),
        pa.field("link_floor_ns", pa.float64()),
        pa.field("link_utilisation", pa.float64()),
        pa.field("gpu_utilisation", pa.float64()),
        pa.field("host_utilisation", pa.float64()),
        pa.field("cpu_utilisation", pa.float64()),
        # under load: only for a stream of requests
        pa.field("requests_measured", pa.int64()),
        pa.field("requests_finished", pa.int64()),
        pa.field("arrived_per_s", pa.float64()),
        pa.field("requests_per_s", pa.float64()),
        pa.field("output_tokens_per_s", pa.float64()),
        *(
            pa.field(f"{what}_{statistic}_ns", pa.float64())
            for what in ("queueing", "itl", "e2e") for statistic in ("mean", "p50", "p95", "p99")
        ),
        *(
            pa.field(f"run_{what}_ns", pa.int64())
            for what in ("total", "attention", "experts", "exposed_copy", "host", "idle")
        ),
        # experts
        pa.field("accesses", pa.int64()),
        pa.field("hits", pa.int64()),
        pa.field("hits_by_prefetch", pa.int64()),
        pa.field("misses", pa.int64()),
        *(pa.field(f"misses_{reason}", pa.int64()) for reason in REASONS),
        pa.field("optimum_known", pa.bool_()),
        pa.field("hit_rate", pa.float64()),
        pa.field("resident_hit_rate", pa.float64()),
        pa.field("stood_in", pa.int64()),
        pa.field("weight_executed", pa.float64()),
        pa.field("experts_on_cpu", pa.int64()),
        pa.field("cpu_busy_ns", pa.int64()),
        pa.field("server_utilisation", pa.float64()),
        pa.field("weight_executed_low", pa.float64()),
        pa.field("copies", pa.int64()),
        pa.field("copies_low", pa.int64()),
        pa.field("copies_bottom", pa.int64()),
        pa.field("bytes_copied", pa.int64()),
        pa.field("bytes_per_token", pa.float64()),
        pa.field("prefetches", pa.int64()),
        pa.field("prefetches_useful", pa.int64()),
        pa.field("prefetches_late", pa.int64()),
        pa.field("prefetches_dropped", pa.int64()),
        pa.field("prefetches_taken_back", pa.int64()),
        pa.field("cancelled_bytes", pa.int64()),
        pa.field("disk_reads", pa.int64()),
        pa.field("disk_bytes", pa.int64()),
        pa.field("disk_utilisation", pa.float64()),
        pa.field("prefetch_precision", pa.float64()),
        pa.field("prefetch_recall", pa.float64()),
        pa.field("prefetch_wasted_bytes", pa.int64()),
        pa.field("prefill_hits", pa.int64()),
        pa.field("prefill_misses", pa.int64()),
        pa.field("prefill_bytes_copied", pa.int64()),
        # exactly which inputs
        pa.field("kernel_times", pa.string()),
        pa.field("trace_hash", pa.string()),
        pa.field("configuration", pa.string()),
        pa.field("run_hash", pa.string()),
        pa.field("moesim_version", pa.string()),
    ]
)


@dataclass
class Phase:
    """Sums over the measured steps of one phase."""

    steps: int = 0
    tokens: int = 0
    """Kept ones, where drafts are verified."""
    turns: int = 0
    """Tokens of each sequence: a step's one, or as many as a verification keeps."""
    batch: int = 0
    """Most sequences of a step."""
    drafted: int = 0
    accepted: int = 0
    draft_ns: int = 0
    time: TokenTime = field(default_factory=TokenTime)
    """Of the steps: each counted once."""
    time_of_tokens: TokenTime = field(default_factory=TokenTime)
    """Of the tokens: a step counts for each token that it computes."""
    token_ns: "array[float]" = field(default_factory=lambda: array("d"))
    """Of each step, the time of one of its tokens. Packed: a long trace has millions."""
    step_tokens: "array[int]" = field(default_factory=lambda: array("I"))
    accesses: int = 0
    hits: int = 0
    hits_by_prefetch: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    stood_in: int = 0
    on_cpu: int = 0
    cpu_busy_ns: int = 0
    served_tokens: int = 0
    could_serve_tokens: int = 0
    copies: int = 0
    copies_low: int = 0
    link_busy_ns: int = 0
    host_blocked_ns: int = 0
    prefetches: int = 0
    prefetches_late: int = 0
    prefetches_dropped: int = 0
    prefetches_taken_back: int = 0
    cancelled_bytes: int = 0
    disk_reads: int = 0
    disk_busy_ns: int = 0
    prefetches_unused: int = 0
    prefetches_unused_low: int = 0
    bottoms_unused: int = 0
    weight: float = 0.0
    weight_executed: float = 0.0
    weight_executed_low: float = 0.0

    def add(self, outcome: StepOutcome) -> None:
        """Take in one step."""
        kept = outcome.step.kept
        # A step takes as long for each of its sequences; what a verification keeps of one shares that time.
        turns = kept if outcome.step.drafted else 1
        self.steps += 1
        self.tokens += kept
        self.turns += turns
        self.batch = max(self.batch, kept // turns)
        self.token_ns.append((outcome.end_ns - outcome.begin_ns) / turns)
        self.step_tokens.append(kept)
        self.time.add(outcome.time)
        self.time_of_tokens.add(outcome.time, kept // turns)
        self.drafted += outcome.step.drafted
        self.accepted += kept - 1 if outcome.step.drafted else 0
        self.draft_ns += outcome.draft_ns
        for decision in outcome.drafts:  # without bottoms: no draft goes with split experts
            self.prefetches += len(decision.prefetch)
        self.copies += outcome.copies
        self.copies_low += outcome.copies_low
        self.link_busy_ns += outcome.link_busy_ns
        self.host_blocked_ns += outcome.host_blocked_ns
        self.cpu_busy_ns += outcome.cpu_busy_ns
        self.served_tokens += outcome.served_tokens
        self.could_serve_tokens += outcome.could_serve_tokens
        self.prefetches_late += outcome.late_prefetches
        self.prefetches_taken_back += outcome.guesses_dropped
        self.cancelled_bytes += outcome.cancelled_bytes
        self.disk_reads += outcome.disk_reads
        self.disk_busy_ns += outcome.disk_busy_ns
        for decision in outcome.decisions:
            self.hits += decision.hits
            self.hits_by_prefetch += decision.hits_by_prefetch
            self.misses.update(decision.misses)
            self.stood_in += len(decision.stood_in)
            self.on_cpu += len(decision.on_cpu)
            self.prefetches += len(decision.prefetch) + len(decision.prefetch_bottoms)
            self.bottoms_unused += decision.bottoms_unused
            self.prefetches_dropped += decision.prefetch_dropped
            self.prefetches_unused += decision.prefetch_unused
            self.prefetches_unused_low += decision.prefetch_unused_low
        self.accesses = self.hits + self.misses.total()

    def bytes_copied(self, expert_bytes: int, low_bytes: int) -> int:
        """Bytes over the link, each copy at the size of its precision, less what was taken back."""
        high = self.copies - self.copies_low
        return high * expert_bytes + self.copies_low * low_bytes - self.cancelled_bytes

    def add_weight(self, outcome: StepOutcome, layers: int, experts_per_layer: int) -> None:
        """The share of gate weight that was executed truly, for a policy that may execute something else."""
        for decision in outcome.decisions:
            executed = [expert for wave in decision.waves for expert in wave.execute]
            mass = outcome.step.mass(decision.layer)
            self.weight += sum(mass.values())
            first_low = layers * experts_per_layer
            self.weight_executed_low += sum(
                mass.get(expert % experts_per_layer, 0.0) for expert in executed if expert >= first_low
            )
            if decision.weight_executed is not None:
                self.weight_executed += decision.weight_executed
                continue
            in_time = [expert for expert in decision.on_cpu if expert not in decision.deferred]
            here = {expert % experts_per_layer for expert in (*executed, *in_time)}
            self.weight_executed += sum(weight for expert, weight in mass.items() if expert in here)


class Tally:
    """Sorts steps into warm-up and measured ones and sums the latter.

    Warm-up ends after a number of *decoded* tokens; the prefill of a request counts as measured when it begins
    behind them.
    """

    def __init__(self, warmup_tokens: int, *, lossless: bool, layers: int, experts: int) -> None:
        self._warmup = warmup_tokens
        self._lossless = lossless
        self._layers = layers
        self._experts = experts
        self._decoded = 0
        self.prefill = Phase()
        self.decode = Phase()
        self.ttft_ns: list[int] = []
        self.longest_context_tokens = 1
        self.sequences = 1
        self.last_token_ns = (0, 0)

    def observe(self, outcome: StepOutcome) -> None:
        """Take in one step."""
        step = outcome.step
        measured = self._decoded >= self._warmup
        self.longest_context_tokens = max(self.longest_context_tokens, step.context_tokens)
        self.sequences = max(self.sequences, len(step.requests))
        if step.phase == PREFILL:
            if measured:
                self.prefill.add(outcome)
                self.ttft_ns.extend([outcome.end_ns - outcome.begin_ns] * len(step.requests))
        else:
            self._decoded += step.kept
            self.last_token_ns = outcome.begin_ns, outcome.end_ns
            if measured:
                self.decode.add(outcome)
                if not self._lossless:
                    self.decode.add_weight(outcome, self._layers, self._experts)

    @property
    def tpot_mean_ns(self) -> float | None:
        """Mean time per output token: a token takes as long as the step that computes it."""
        tokens = self.decode.tokens
        return self.decode.time_of_tokens.total_ns / tokens if tokens else None

    def columns(self, expert_bytes: int, low_bytes: int, link_bytes_per_s: float) -> dict[str, Value]:
        """The metrics of a row that follow from the steps alone; `low_bytes`: of an expert in its second version."""
        decode, prefill = self.decode, self.prefill
        time = decode.time
        each = np.frombuffer(decode.token_ns, dtype=np.float64)
        if decode.tokens > decode.steps:
            each = np.repeat(each, np.frombuffer(decode.step_tokens, dtype=np.uintc))
        bytes_copied = decode.bytes_copied(expert_bytes, low_bytes)
        useful = decode.hits_by_prefetch
        asked = decode.hits + decode.misses.total()

        def per_token(total_ns: int) -> float | None:
            return total_ns / decode.tokens if decode.tokens else None

        return {
            "batch_tokens": decode.batch,
            "tokens_measured": decode.tokens,
            "decode_steps": decode.steps,
            "draft_tokens": decode.drafted,
            "draft_accepted_tokens": decode.accepted,
            "accepted_mean_tokens": decode.accepted / decode.steps if decode.drafted else None,
            "stand_in_tokens": decode.drafted - decode.accepted,
            "tpot_draft_ns": decode.draft_ns / decode.tokens if decode.drafted else None,
            "tpot_mean_ns": self.tpot_mean_ns,
            **dict(zip(("tpot_p50_ns", "tpot_p95_ns", "tpot_p99_ns"), _percentiles(each, 50, 95, 99), strict=True)),
            "ttft_mean_ns": _mean(self.ttft_ns),
            "ttft_p99_ns": _percentiles(self.ttft_ns, 99)[0],
            "tokens_per_s": decode.tokens * 1e9 / time.total_ns if time.total_ns else None,
            "tpot_attention_ns": per_token(decode.time_of_tokens.attention_ns),
            "tpot_experts_ns": per_token(decode.time_of_tokens.experts_ns),
            "tpot_exposed_copy_ns": per_token(decode.time_of_tokens.exposed_copy_ns),
            "tpot_host_ns": per_token(decode.time_of_tokens.host_ns),
            "tpot_idle_ns": per_token(decode.time_of_tokens.idle_ns),
            "decode_total_ns": time.total_ns,
            "attention_total_ns": time.attention_ns,
            "experts_total_ns": time.experts_ns,
            "exposed_copy_total_ns": time.exposed_copy_ns,
            "host_total_ns": time.host_ns,
            "idle_total_ns": time.idle_ns,
            "link_floor_ns": bytes_copied * 1e9 / link_bytes_per_s / decode.turns if decode.turns else None,
            "link_utilisation": _share(decode.link_busy_ns, time.total_ns),
            "gpu_utilisation": _share(time.attention_ns + time.experts_ns, time.total_ns),
            "host_utilisation": _share(time.total_ns - decode.host_blocked_ns, time.total_ns),
            "cpu_utilisation": _share(decode.cpu_busy_ns, time.total_ns),
            "accesses": decode.accesses,
            "hits": decode.hits,
            "hits_by_prefetch": useful,
            "misses": decode.misses.total(),
            **{f"misses_{reason}": decode.misses[reason] for reason in REASONS},
            "hit_rate": _share(decode.hits, asked),
            "resident_hit_rate": _share(decode.hits - useful, asked),
            "stood_in": decode.stood_in,
            "weight_executed": 1.0 if self._lossless else _share(decode.weight_executed, decode.weight),
            "experts_on_cpu": decode.on_cpu,
            "cpu_busy_ns": decode.cpu_busy_ns,
            "server_utilisation": _share(decode.served_tokens, decode.could_serve_tokens),
            "weight_executed_low": 0.0 if self._lossless else _share(decode.weight_executed_low, decode.weight),
            "copies": decode.copies,
            "copies_low": decode.copies_low,
            "bytes_copied": bytes_copied,
            "bytes_per_token": bytes_copied / decode.tokens if decode.tokens else None,
            "prefetches": decode.prefetches,
            "prefetches_useful": useful,
            "prefetches_late": decode.prefetches_late,
            "prefetches_dropped": decode.prefetches_dropped,
            "prefetches_taken_back": decode.prefetches_taken_back,
            "cancelled_bytes": decode.cancelled_bytes,
            "disk_reads": decode.disk_reads,
            "disk_bytes": decode.disk_reads * expert_bytes,
            "disk_utilisation": _share(decode.disk_busy_ns, time.total_ns),
            "prefetch_precision": _share(useful, useful + decode.prefetches_unused),
            "prefetch_recall": _share(useful, useful + decode.misses.total()) if decode.prefetches else None,
            "prefetch_wasted_bytes": (
                decode.prefetches_unused * expert_bytes - decode.prefetches_unused_low * (expert_bytes - low_bytes)
                + decode.bottoms_unused * low_bytes
            ),
            "prefill_hits": prefill.hits,
            "prefill_misses": prefill.misses.total(),
            "prefill_bytes_copied": prefill.bytes_copied(expert_bytes, low_bytes),
        }


def _mean(values: Sequence[int] | np.ndarray[Any, Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _percentiles(values: Sequence[int] | np.ndarray[Any, Any], *percents: int) -> list[float] | list[None]:
    """Of values whose order does not matter: an array is put into another, since a copy takes as much memory again."""
    if not len(values):
        return [None] * len(percents)
    return [float(each) for each in np.percentile(values, percents, overwrite_input=True)]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
