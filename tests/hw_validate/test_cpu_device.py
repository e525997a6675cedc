"""The harness without a GPU: what the CPU device did is what the simulator did, bit for bit the true outputs, and waits
that are left out are noticed."""

import pytest
import torch

from hw_validate.cpu import CpuDense, CpuDevice
from hw_validate.measured import measure
from hw_validate.storage import HostExperts
from moesim.model import ModelSpec
from tests.hw_validate.cells_on_devices import (
    ALL_POLICIES,
    CONTEXT_TOKENS,
    LOSSLESS,
    differences,
    make_job,
    write_model,
    write_trace,
)

SHAPE = {"layers": 3, "experts": 8, "top_k": 2, "hidden": 64, "expert_intermediate": 32, "head_size": 16}
EXPERTS = SHAPE["layers"] * SHAPE["experts"]
TOP_K_SLOTS = SHAPE["top_k"] / EXPERTS
STEPS = 10
BATCH = 3


class Machine:
    """A tiny model, its experts, dense layers by batch, and traces, made once for all tests."""

    def __init__(self, folder, precision="bf16"):
        self.model = write_model(folder, **SHAPE, precision=precision)
        self.spec = ModelSpec.load(str(self.model))
        self.host = HostExperts(EXPERTS, self.spec.expert_bytes, pinned=False)
        self.dense, self.trace = {}, {}
        for batch in (1, BATCH):
            self.dense[batch] = CpuDense(self.spec, self.spec.layers, batch, batch, CONTEXT_TOKENS)
            self.trace[batch] = write_trace(folder / f"{precision}-{batch}.safetensors", self.spec, STEPS, batch)
        self.host.fill(torch.device("cpu"), seed=3, dtype=self.dense[1].dtype)

    def run(self, policy, cache_fraction, batch=1, make_device=CpuDevice):
        work = make_job(self.trace[batch], self.model, policy, cache_fraction, batch=batch)
        return work, measure(work, self.dense[batch], self.host, make_device=make_device)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def truth(machine):
    """The digest of the outputs with every expert resident, by batch."""
    return {batch: machine.run("all-resident", 1.0, batch)[1].output_sha256 for batch in (1, BATCH)}


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("cache_fraction", [0.0, TOP_K_SLOTS, 0.25, 0.5])
@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_a_run_is_the_simulated_one_and_lossless_policies_give_the_true_outputs(
    machine, truth, policy, cache_fraction, batch
):
    work, ran = machine.run(policy, cache_fraction, batch)
    assert differences(ran, work) == []
    assert sum(map(len, ran.deeds.executed)) > 0
    assert all(tag >= 0 for event in ran.deeds.executed for tag in event)
    if policy in LOSSLESS:
        assert ran.output_sha256 == truth[batch]


def test_wrong_experts_give_other_outputs(machine, truth):
    _, speculated = machine.run("speculate-and-execute", 0.5)
    assert speculated.output_sha256 != truth[1]
