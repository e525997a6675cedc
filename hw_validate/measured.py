"""One cell on a device: slots, device, loop; what came of it, checked against what the bytes themselves say."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hw_validate.cpu import CpuDevice
from hw_validate.cpu_dense import CpuDense
from hw_validate.cuda import CudaGPU
from hw_validate.dense import DenseLayers
from hw_validate.pairs import pairs_of_events
from hw_validate.storage import HostExperts, Slots
from hw_validate.worlds import Clocked, Deeds, Job
from moesim.replay import StepOutcome
from moesim.run import paused_collector
from moesim.timeline import Timeline
from moesim.window import load_trace

MakeDevice = Callable[[Any, HostExperts, Slots, int], CudaGPU | CpuDevice]
"""A device from its dense layers, experts, slots, and how many executions it is to log."""


def device_of(dense: DenseLayers | CpuDense, host: HostExperts, slots: Slots, executions: int) -> CudaGPU | CpuDevice:
    """The device on which `dense` is."""
    if isinstance(dense, CpuDense):
        return CpuDevice(dense, host, slots, executions)
    return CudaGPU(dense, host, slots, executions)


@dataclass(frozen=True)
class Ran:
    """A cell's run on a device."""

    clocked: Clocked
    deeds: Deeds
    """`executed` is the log that the kernels wrote: tags read out of the slots."""
    held: list[int]
    """Whom each slot holds at the end, by its tag; -1 for nobody."""
    torn: int
    """Executions whose tag was another one behind the kernels than before them."""
    output_sha256: str
    """Of the residual stream at the end of each of the first `output_steps` steps."""
    output_steps: int


@paused_collector()
def measure(
    job: Job,
    dense: DenseLayers | CpuDense,
    host: HostExperts,
    *,
    make_device: MakeDevice = device_of,
    timeline: Timeline | None = None,
    between: Callable[[str], None] = lambda moment: None,
) -> Ran:
    """Run a cell on what `make_device` makes: the GPU or the CPU, where `dense` is.

    `between` is told when the measured steps begin ("begin") and when they have ended ("end").

    Raises:
        HardwareError: no memory for the slots, or steps of another shape than `dense` was captured for.
    """
    executions = sum(len(wave.execute) for decision in job.decisions for wave in decision.waves)
    slots = Slots(job.slots, host, dense.residual.device)
    device = make_device(dense, host, slots, executions)
    device.reset()
    if job.run.window.capacity.everything:
        device.load_everything()
    trace = load_trace(job.run.config.trace)
    device.pairs = iter(list(pairs_of_events(trace, job.window(), job.decisions, job.predictor)))
    clocked = Clocked(job.warmup_steps, job.measured_steps)

    def observe(outcome: StepOutcome) -> None:
        clocked.observe(outcome)
        ran = len(clocked.outcomes)
        if ran == job.warmup_steps:
            between("begin")
        if ran == job.warmup_steps + job.measured_steps:
            between("end")
            if job.instrumented_steps:
                device.instrument(timeline)

    device.start()
    device.run(job.replay(device, observe).program())
    deeds = Deeds.empty(len(job.decisions))
    for event, expert, slot in device.copied:
        deeds.copies[event].append((expert, slot))
    tags = iter(device.executed())
    torn = 0
    for event, count in device.launched:
        for _ in range(count):
            before, behind = next(tags)
            torn += before != behind
            deeds.executed[event].append(before)
    steps = job.warmup_steps + job.measured_steps
    digests = dense.digests[:steps].cpu().numpy().tobytes()
    return Ran(clocked, deeds, slots.held(), torn, hashlib.sha256(digests).hexdigest(), steps)
