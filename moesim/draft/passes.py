"""The draft's passes in the replay loop: k tokens of dense work and low-precision experts, before the step proper.

    pass 1   pass 2   ...  pass k   | the step: k + 1 tokens, verified
             ids 1: copies | ids 2: copies ...

The draft's experts are all resident, so a pass waits for no copy. Its ids are read back while the next pass runs,
and whom they name is copied: the engine of the paper does not let the GPU wait for the host between passes (assumed).
"""

from collections.abc import Callable, Generator
from itertools import groupby
from typing import Any

from moesim.decision import Copy, Decision
from moesim.devices.base import Device, Event
from moesim.engine import EngineSpec
from moesim.events import Step
from moesim.kernels import Kernels
from moesim.model import ModelSpec


class DraftPasses:
    """What the draft costs and when whom it names is copied."""

    def __init__(self, device: Device[Any], draft: ModelSpec, engine: EngineSpec, plan: list[int]) -> None:
        """`plan`: per layer of the model, its place among the MoE layers, or -1 for a dense one."""
        self._device = device
        self._model = draft
        self._kernels = Kernels(device, draft, engine, "draft ")
        self._plan = plan

    def run(
        self, step: Step, context_tokens: int, foresee: Callable[[Step, int], Decision],
        copy: Callable[[list[Copy]], None],
    ) -> Generator[Any, None, list[Decision]]:
        """Draft the step's tokens; `copy` is called once per layer that a pass names somebody of."""
        made = []
        done = self._launch(context_tokens)
        for number in range(step.drafted):
            following = self._launch(context_tokens) if number + 1 < step.drafted else None
            yield from self._device.read_back(done)
            decision = foresee(step, number)
            for _, copies in groupby(decision.prefetch, lambda each: each.expert // self._model.experts):
                copy(list(copies))
            made.append(decision)
            if following is not None:
                done = following
        return made

    def _launch(self, context_tokens: int) -> Event:
        device, kernels = self._device, self._kernels
        for number, layer in enumerate(self._plan):
            if layer < 0:
                device.launch(device.compute, kernels.dense_layer(number, 1, context_tokens, 1))
                continue
            device.launch(device.compute, kernels.attention(layer, 1, context_tokens, 1))
            device.launch(device.compute, kernels.router(layer, 1))
            device.launch(device.compute, kernels.experts(layer, self._model.top_k, self._model.top_k))
        device.launch(device.compute, kernels.head(1))
        return device.record(device.compute)
