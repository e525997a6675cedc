"""The same on a real GPU, whose hazards are real: what ran is what was simulated, and left-out waits are noticed."""

import ctypes

import pytest
import torch

from hw_validate.cuda import CudaGPU
from hw_validate.dense import DenseLayers
from tests.hw_validate.cells_on_devices import BATCH, LOSSLESS, STRESS, Machine, differences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

SHAPE = {"layers": 4, "experts": 16, "top_k": 4, "hidden": 512, "expert_intermediate": 256, "head_size": 64}
POLICIES = ["on-demand", "lru", "least-stale", "prefetch-and-refetch", "speculate-and-execute", "resident-execute"]
DELAY_NS = 500_000
"""Ten times what a copy of these experts and all that the host does meanwhile take."""


def captured(*shape):
    dense = DenseLayers(*shape)
    dense.capture()
    return dense


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("machine"), captured, "cuda", **SHAPE)
    yield machine
    machine.host.close()


class _Delaying(CudaGPU):
    """Can keep a stream busy: whatever is enqueued behind that begins late."""

    def __init__(self, dense, host, slots, log_entries):
        super().__init__(dense, host, slots, log_entries)
        self._busy = dense.module.launch("busy", [ctypes.c_uint64(DELAY_NS)], 1)

    def keep_busy(self, stream):
        self._busy(stream.cuda_stream, 1)


class SlowCopies(_Delaying):
    """Each copy begins late: kernels must wait for it."""

    def copy(self, stream, expert, slot, size_bytes):
        self.keep_busy(stream)
        return super().copy(stream, expert, slot, size_bytes)


class SlowKernels(_Delaying):
    """Expert kernels begin late: copies into their slots must wait."""

    def launch(self, stream, prepared, slots=()):
        if prepared.kind == "experts":
            self.keep_busy(stream)
        return super().launch(stream, prepared, slots)


class KernelsDoNotWait(SlowCopies):
    """The read-after-write hazard."""

    def wait(self, stream, event):
        if stream is not self.compute:
            super().wait(stream, event)


class CopiesDoNotWait(SlowKernels):
    """The write-after-read hazard."""

    def wait(self, stream, event):
        if stream is not self.copies:
            super().wait(stream, event)


@pytest.mark.parametrize(("slots", "batch"), [("none", 1), ("top-k", BATCH), ("25%", 1), ("50%", BATCH)])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_is_the_simulated_one_and_lossless_policies_give_the_true_outputs(machine, policy, slots, batch):
    cache_fraction = {"none": 0.0, "top-k": machine.top_k_slots, "25%": 0.25, "50%": 0.5}[slots]
    work, ran = machine.run(policy, cache_fraction, batch)
    assert differences(ran, work) == []
    assert sum(map(len, ran.deeds.executed)) > 0
    if policy in LOSSLESS:
        assert ran.output_sha256 == machine.truth(batch)
    else:
        assert ran.output_sha256 != machine.truth(batch)


@pytest.mark.parametrize("device", [SlowCopies, SlowKernels])
@pytest.mark.parametrize(("policy", "batch"), STRESS)
def test_every_slot_is_used_again_at_once_and_nothing_is_torn(machine, policy, batch, device):
    machine.check_stress(policy, batch, device)


@pytest.mark.parametrize("device", [KernelsDoNotWait, CopiesDoNotWait])
@pytest.mark.parametrize("policy", ["lru", "prefetch-and-refetch"])
def test_a_wait_left_out_is_caught(machine, policy, device):
    work, ran = machine.run(policy, machine.top_k_slots, BATCH, device)
    assert "executed" in differences(ran, work), "by the tags that the kernels read"
    assert ran.output_sha256 != machine.truth(BATCH), "by the outputs"
