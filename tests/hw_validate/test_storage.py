"""Expert blocks, their tags, and memory that is not there."""

import pytest
import torch

import hw_validate.storage
from hw_validate.driver import HardwareError
from hw_validate.storage import TAG_BYTES, HostExperts, Slots, available_host_bytes

CPU = torch.device("cpu")


def test_every_block_ends_in_its_own_name_and_holds_weights_of_the_wanted_spread():
    with HostExperts(5, 4096, pinned=False) as host:
        host.fill(CPU, seed=1)
        for expert in range(5):
            block = host.block(expert)
            assert block.shape == (4096 + TAG_BYTES,)
            assert block[4096:].view(torch.int64).tolist() == [expert] * (TAG_BYTES // 8)
            weights = block[:4096].view(torch.bfloat16).float()
            assert abs(float(weights.mean())) < 0.002
            assert float(weights.std()) == pytest.approx(0.02, rel=0.1)
        assert not torch.equal(host.block(0)[:4096], host.block(1)[:4096])


def test_weights_read_as_float32_have_the_same_spread():
    with HostExperts(2, 4096, pinned=False) as host:
        host.fill(CPU, seed=1)
        assert float(host.block(1)[:4096].view(torch.float32).std()) == pytest.approx(0.02, rel=0.1)


def test_weights_drawn_in_pieces_still_carry_every_tag(monkeypatch):
    with HostExperts(7, 1024, pinned=False) as host:
        # Pieces of three: 7 experts are two whole pieces and a part of one.
        monkeypatch.setattr(hw_validate.storage, "DRAW_BYTES", 3 * host.stride_bytes)
        host.fill(CPU, seed=1)
        assert [int(host.block(expert)[1024:1032].view(torch.int64)) for expert in range(7)] == list(range(7))


def test_slots_hold_nobody_until_a_block_is_copied_into_them():
    with HostExperts(4, 1024, pinned=False) as host:
        host.fill(CPU, seed=1)
        slots = Slots(3, host, CPU)
        assert slots.held() == [-1, -1, -1]
        slots.bytes.view(3, -1)[1].copy_(host.block(2))
        assert slots.held() == [-1, 2, -1]


def test_a_size_off_the_boundary_is_refused():
    with pytest.raises(HardwareError, match=r"^experts of 1000 bytes: expected a multiple of 64$"):
        HostExperts(1, 1000, pinned=False)


def test_too_little_memory_says_what_would_fit(monkeypatch):
    with HostExperts(2, 1 << 20, pinned=False) as host:
        monkeypatch.setattr(hw_validate.storage, "available_host_bytes", lambda: 100 * ((1 << 20) + TAG_BYTES) + 5)
        with pytest.raises(HardwareError) as refusal:
            HostExperts(3000, 1 << 20, pinned=False)
        assert str(refusal.value) == "3000 experts need 3.1 GB of host memory and 0.1 GB are free: 100 would fit"
        with pytest.raises(HardwareError) as refusal:
            Slots(3000, host, CPU)
        assert str(refusal.value) == "3000 slots need 3.1 GB and 0.1 GB of host memory are free: 100 would fit"


def test_as_much_as_is_free_is_taken(monkeypatch):
    monkeypatch.setattr(hw_validate.storage, "available_host_bytes", lambda: 3 * (1024 + TAG_BYTES))
    with HostExperts(3, 1024, pinned=False) as host:
        assert Slots(3, host, CPU).count == 3


def test_available_memory_is_less_than_all_of_it():
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        total = int(next(line for line in file if line.startswith("MemTotal")).split()[1]) * 1024
    assert 0 < available_host_bytes() <= total
