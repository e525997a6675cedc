"""Engines: how many kernels they launch, eagerly or captured."""

import pytest

from moesim.catalogue import names
from moesim.devices.simulated import SimulatedGPU
from moesim.engine import EngineSpec
from moesim.hardware import HardwareSpec
from moesim.model import Kernel


@pytest.mark.parametrize("name", names("engines"))
def test_a_group_of_small_kernels_takes_the_gpu_one_floor_each_captured_or_not(name):
    hardware = HardwareSpec.load("rtx-a6000").at("centre")
    engine = EngineSpec.load(name)
    tiny = Kernel("attention", 1, 1, 0, 1, 1)
    for mode in ("eager", "graph"):
        gpu = SimulatedGPU(hardware, engine.model_copy(update={"mode": mode}))
        prepared = gpu.prepare("attention", "attention", 0, tiny, engine.launched("attention"))
        assert prepared.duration_ns == engine.launches.attention * 3_000


def test_a_loop_over_experts_launches_more_for_each():
    engine = EngineSpec.load("eager")
    each = engine.launches.experts_each
    assert each > 0
    assert engine.launched("experts", 8) - engine.launched("experts", 3) == 5 * each
    fused = EngineSpec.load("yalis")
    assert fused.launched("experts", 8) == fused.launched("experts", 1)
