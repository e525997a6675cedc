"""A small machine without a GPU, made once."""

import pytest

from hw_validate.cpu import CpuDense
from tests.hw_validate.cells_on_devices import Machine

SHAPE = {"layers": 3, "experts": 8, "top_k": 2, "hidden": 64, "expert_intermediate": 32, "head_size": 16}


@pytest.fixture(scope="session")
def cpu_machine(tmp_path_factory):
    return Machine(tmp_path_factory.mktemp("machine"), CpuDense, "cpu", **SHAPE)


@pytest.fixture(scope="session")
def wide_cpu_machine(tmp_path_factory):
    """The same in float32."""
    return Machine(tmp_path_factory.mktemp("machine"), CpuDense, "cpu", precision="fp32", **SHAPE)
