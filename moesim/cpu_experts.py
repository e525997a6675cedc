"""The replay loop's part for experts on the CPU: what is handed over, and when the GPU waits for it.

    the layer's input has come to the host with the ids
    CPU:     the experts of the event, one after another; those that may come late at the end
    results: one sum per token for all experts of the event, and another for those that may come late
    GPU:     behind the layer's own expert kernels, wait for this layer's sum and for what the layer before deferred

What is due at the end of a step is all awaited in its last layer, so that nothing of a token is left behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moesim.decision import Decision
from moesim.devices.base import DeviceWithCpu, Event
from moesim.events import Step
from moesim.model import Kernel, ModelSpec

ACTIVATION_BYTES = 2
"""Of a number of a layer's input or result."""


@dataclass(slots=True)
class CpuExperts:
    """Launches on the CPU of a device, and what the GPU still has to wait for."""

    device: DeviceWithCpu[Any]
    model: ModelSpec
    _due: list[Event] = field(default_factory=list)
    """Results to be added in this layer."""
    _late: list[Event] = field(default_factory=list)
    """Results to be added in the next one."""
    _kernels: dict[int, Kernel] = field(default_factory=dict)
    """By tokens."""

    def execute(self, step: Step, decision: Decision, predictor: str | None) -> None:
        """Hand an event's experts over. With a `predictor`, tokens go to the experts that it ranks first."""
        if not decision.on_cpu:
            return
        device, late = self.device, len(decision.deferred)
        now = len(decision.on_cpu) - late
        size_bytes = step.tokens * self.model.hidden * ACTIVATION_BYTES
        device.bring_activations(size_bytes)
        if now:
            self._launch(step, decision.layer, decision.on_cpu[:now], predictor)
            self._due.append(self._result(size_bytes))
        if late:
            self._launch(step, decision.layer, decision.on_cpu[now:], predictor)
            self._late.append(self._result(size_bytes))

    def _launch(self, step: Step, layer: int, experts: Sequence[int], predictor: str | None) -> None:
        for expert in experts:
            tokens = 1 if step.tokens == 1 else step.pairs_of(layer, [expert], self.model.experts, predictor)
            if tokens not in self._kernels:
                self._kernels[tokens] = self.model.cpu_expert_kernel(tokens)
            self.device.execute(expert, self._kernels[tokens])

    def _result(self, size_bytes: int) -> Event:
        device = self.device
        device.wait(device.results, device.record(device.cpu))
        return device.record(device.results, device.return_result(size_bytes))

    def join(self, last: bool) -> None:
        """The layer's expert kernels are launched: whatever comes behind them waits for the CPU's results."""
        due = self._due + self._late if last else self._due
        for event in due:
            self.device.wait(self.device.compute, event)
        self._due, self._late = ([], []) if last else (self._late, [])
