"""Slots that are used again at once, slow streams, and waits left out: the CPU device must be right, or be caught."""

from time import sleep

import pytest

from hw_validate.cpu import CpuDevice
from tests.hw_validate.cells_on_devices import BATCH, STRESS, differences

DELAY_S = 0.001


class SlowCopies(CpuDevice):
    """Each copy begins late: kernels must wait for it."""

    def bring(self, expert, slot):
        sleep(DELAY_S)
        super().bring(expert, slot)


class SlowKernels(CpuDevice):
    """Each expert's weights are read late: copies into its slot must wait."""

    def execute(self, slot, pairs):
        sleep(DELAY_S)
        super().execute(slot, pairs)


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


@pytest.mark.parametrize("device", [SlowCopies, SlowKernels])
@pytest.mark.parametrize(("policy", "batch"), STRESS)
def test_every_slot_is_used_again_at_once_and_nothing_is_torn(cpu_machine, policy, batch, device):
    cpu_machine.check_stress(policy, batch, device)


@pytest.mark.parametrize("device", [SlowCopies, SlowKernels])
def test_speculation_without_a_cache_under_slow_streams(cpu_machine, device):
    work, ran = cpu_machine.run("speculate-and-execute", 0.0, make_device=device)
    assert differences(ran, work) == []
    assert ran.output_sha256 == cpu_machine.run("speculate-and-execute", 0.5)[1].output_sha256


@pytest.mark.parametrize("policy", ["lru", "prefetch-and-refetch"])
def test_kernels_that_do_not_wait_for_their_copies_are_caught(cpu_machine, policy):
    work, ran = cpu_machine.run(policy, cpu_machine.top_k_slots, BATCH, make_device=KernelsDoNotWait)
    assert "executed" in differences(ran, work), "by the tags that the kernels read"
    assert ran.output_sha256 != cpu_machine.truth(BATCH), "by the outputs"


@pytest.mark.parametrize("policy", ["lru", "prefetch-and-refetch"])
def test_copies_that_do_not_wait_for_the_kernels_that_read_their_slot_are_caught(cpu_machine, policy):
    work, ran = cpu_machine.run(policy, cpu_machine.top_k_slots, BATCH, make_device=CopiesDoNotWait)
    assert "torn" in differences(ran, work), "by the tags that the kernels read"
    assert ran.output_sha256 != cpu_machine.truth(BATCH), "by the outputs"
