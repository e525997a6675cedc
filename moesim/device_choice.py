"""Which device times a run: FastGPU where every instant has a closed form, else SimPy.

Both give the same row to the nanosecond, but for its column `device`, which says who timed it.
"""

from typing import Literal

from moesim.devices.copy_queues import SimulatedGPUWithCopyThread
from moesim.devices.fast import FastGPU
from moesim.devices.simulated import SimulatedGPU
from moesim.devices.simulated_cpu import SimulatedGPUAndCPU
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.hardware import Hardware
from moesim.policies.composition import Policy
from moesim.timeline import Timeline

Asked = Literal["auto", "fast", "simulated"]
Chosen = Literal["fast", "simulated"]


def why_not_fast(policy: Policy, engine: EngineSpec, *, draws: bool) -> str | None:
    """Why FastGPU cannot time a run, in a few words; None where it can.

    Whatever makes an instant depend on what has not been enqueued yet belongs here.
    """
    if draws:
        return "a timeline is drawn by the simulated device"
    if policy.uses_cpu:
        return f"policy {policy.name} executes experts on the CPU, which share the host's memory with the copies"
    if engine.copy_thread is not None:
        return f"engine {engine.name} keeps its copies in software queues"
    return None


def choose_device(asked: Asked, policy: Policy, engine: EngineSpec, *, draws: bool = False) -> Chosen:
    """The device that times a run. Raises ConfigError when FastGPU is asked for by name and cannot."""
    reason = why_not_fast(policy, engine, draws=draws)
    if asked == "fast" and reason is not None:
        raise ConfigError(f"device fast: {reason}: give auto or simulated")
    return "simulated" if asked == "simulated" or reason is not None else "fast"


def new_device(
    chosen: Chosen,
    hardware: Hardware,
    engine: EngineSpec,
    timeline: Timeline | None = None,
    *,
    with_cpu: bool = False,
) -> FastGPU | SimulatedGPU:
    """A device at instant 0."""
    if with_cpu:
        return SimulatedGPUAndCPU(hardware, engine, timeline)
    if chosen == "fast":
        return FastGPU(hardware, engine)
    return (SimulatedGPU if engine.copy_thread is None else SimulatedGPUWithCopyThread)(hardware, engine, timeline)
