"""What the replay loop itself costs the host, whatever the device: timed on a device that does nothing, at once."""

import tempfile
from collections.abc import Generator, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from hw_validate.worlds import Job, job
from moesim.devices.base import Event, KernelClass, KernelRun, Prepared
from moesim.model import Kernel, ModelSpec
from moesim.replay import StepOutcome
from moesim.run import paused_collector
from moesim.run_config import RunConfig
from moesim.trace_batch import batch_decode
from moesim.trace_synthetic import SyntheticSpec, synthesize

TOKENS = 24


class _NoDevice:
    """A device that does nothing, at once: what is left is the loop."""

    compute = copies = prefetches = None
    link_busy_ns = cancelled_bytes = 0

    def __init__(self) -> None:
        self.runs: list[KernelRun] = []
        self.blocked: list[tuple[int, int]] = []
        self._run = KernelRun("experts")

    def prepare(self, name: str, kind: KernelClass, layer: int, kernel: Kernel, launches: int) -> Prepared:
        return Prepared(name, kind, layer, kernel, 0, launches)

    def decided(self) -> None:
        pass

    def idle_until(self, instant_ns: int) -> int:
        return instant_ns

    def launch(self, stream: None, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        return self._run

    def copy(self, stream: None, expert: int, slot: int, size_bytes: int) -> int:
        return 0

    def record(self, stream: None, issued_ns: int | None = None) -> Event:
        return Event(issued_ns=issued_ns)

    def wait(self, stream: None, event: Event) -> None:
        pass

    def read_back(self, event: Event) -> Generator[Any, None, int]:
        return 0
        yield


@paused_collector()
def loop_ns(job: Job, repetitions: int) -> list[float]:
    """Host time of the replay loop itself, per event of this job's window: median step, several times."""
    readings = []
    for _ in range(repetitions):
        stamps = [perf_counter_ns()]

        def observe(outcome: StepOutcome, stamps: list[int] = stamps) -> None:
            stamps.append(perf_counter_ns())

        for _ in job.replay(_NoDevice(), observe).program():
            pass
        taken = sorted(end - begin for begin, end in pairwise(stamps))
        readings.append(taken[len(taken) // 2] / job.run.trace.layers)
    return readings


def loop_costs(model_name: str, repetitions: int) -> tuple[list[float], list[float]]:
    """Readings of the loop's own time: per event with all experts resident, and what a copied expert adds to that."""
    model = ModelSpec.load(model_name)
    with tempfile.TemporaryDirectory() as folder:
        trace = _trace(model, Path(folder))

        def loop(policy: str) -> list[float]:
            config = RunConfig(
                trace=trace, model=model_name, hardware="h200", engine="graph", policy=policy, context_tokens=1024,
                warmup_tokens=0,
            )
            return loop_ns(job(config, 0, TOKENS, 0), repetitions)

        resident, fetching = loop("all-resident"), loop("on-demand")
    return resident, [(each - alone) / model.top_k for each, alone in zip(fetching, resident, strict=True)]


def _trace(model: ModelSpec, folder: Path) -> Path:
    """A few synthetic tokens of the model's shape."""
    trace, _ = synthesize(
        SyntheticSpec(
            layers=len(model.moe_layers), experts=model.experts, top_k=model.top_k, overlap=0.3, busiest=0.2,
            decode_tokens=1000, model=model.name, moe_layers=tuple(model.moe_layers),
        )
    )
    path = folder / "loop.safetensors"
    batch_decode(trace, 1).slice(0, TOKENS).save(path)
    return path
