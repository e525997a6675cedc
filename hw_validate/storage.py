"""Expert weights in pinned host memory, one contiguous block each, and the slots on the device that hold copies of it.

A block is the expert's matrices (gate, up, down) and behind them a tag of 64 bytes whose first eight are its own name,
`layer * experts + expert`. The kernels read the tag out of the slot, so the log of what was executed is told by the
bytes that were there, not by what the host believed.
"""

import mmap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from hw_validate.driver import DoesNotFitError, HardwareError, pin, unpin

TAG_BYTES = 64
"""Keeps every block on a 64-byte boundary."""
PAGE_BYTES = 4096
DRAW_BYTES = 1 << 29
"""Weights drawn at once, before they go to the host."""


def available_host_bytes() -> int:
    """Memory that the system can give without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123, no path to speak of
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    # A virtual machine whose memory grows as it is used tells its present size as the total: an overestimate is
    # met when the pages are touched, so the larger of both is taken.
    return sizes["MemAvailable"]


class HostExperts:
    """All experts of a model in host memory. Close it to give the memory back."""

    def __init__(self, experts: int, expert_bytes: int, *, pinned: bool) -> None:
        """Take the memory and touch every page of it.

        Raises:
            HardwareError: there is not that much, or it cannot be pinned; says what would fit.
        """
        if expert_bytes % TAG_BYTES:
            raise HardwareError(f"experts of {expert_bytes} bytes: expected a multiple of {TAG_BYTES}")
        self.experts = experts
        self.expert_bytes = expert_bytes
        self.stride_bytes = expert_bytes + TAG_BYTES
        size = experts * self.stride_bytes
        available = available_host_bytes()
        if size > available:
            raise DoesNotFitError(
                f"{experts} experts need {size / 1e9:.1f} GB of host memory and {available / 1e9:.1f} GB are free: "
                f"{available // self.stride_bytes} would fit"
            )
        self._memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # The copy engine translates addresses page by page; scattered small pages cost it up to half of its rate.
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self.address = int(self.bytes.ctypes.data)
        with ThreadPoolExecutor() as pool:  # one thread touches 3 GB/s
            list(pool.map(self._touch, range(0, size, 1 << 28)))
        self._pinned = pinned
        if pinned:
            pin(self.address, size)

    def _touch(self, start: int) -> None:
        self.bytes[start : start + (1 << 28) : PAGE_BYTES] = 0

    def block(self, expert: int) -> torch.Tensor:
        """The bytes of one expert, tag included: uint8 [stride_bytes], a view."""
        start = expert * self.stride_bytes
        return torch.from_numpy(self.bytes[start : start + self.stride_bytes])

    def fill(self, device: torch.device, seed: int) -> None:
        """Random weights that keep activations of order one, drawn on `device`, and the tags.

        They are bfloat16; two of them read as one float32 have the same spread, for the upper half decides.
        """
        generator = torch.Generator(device=device).manual_seed(seed)
        per_draw = min(self.experts, max(1, DRAW_BYTES // self.stride_bytes))
        draw = torch.empty((per_draw, self.stride_bytes), dtype=torch.uint8, device=device)
        matrices = draw[:, : self.expert_bytes].view(torch.bfloat16)
        tags = draw[:, self.expert_bytes :].view(torch.int64)
        for first in range(0, self.experts, per_draw):
            count = min(per_draw, self.experts - first)
            matrices.normal_(0.0, 0.02, generator=generator)
            tags[:, :] = torch.arange(first, first + per_draw, device=device)[:, None]
            start = first * self.stride_bytes
            target = torch.from_numpy(self.bytes[start : start + count * self.stride_bytes])
            target.copy_(draw[:count].flatten())

    def close(self) -> None:
        """Unpin; the memory goes when the last view of it does."""
        if self._pinned:
            unpin(self.address)
            self._pinned = False
        self.bytes = np.empty(0, dtype=np.uint8)

    def __enter__(self) -> "HostExperts":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Slots:
    """Room for experts on the device: uint8 [slots, stride_bytes]."""

    def __init__(self, slots: int, host: HostExperts, device: torch.device) -> None:
        """Take the memory. Raises DoesNotFitError when the device has not that much; says what would fit."""
        self.count = slots
        self.stride_bytes = host.stride_bytes
        size = slots * host.stride_bytes
        # The system gives out host memory that it does not have, so there it must be asked before.
        if device.type == "cpu" and size > available_host_bytes():
            raise self._too_many(available_host_bytes(), "host")
        try:
            self.bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            raise self._too_many(torch.cuda.mem_get_info(device)[0], "GPU") from None
        self.address = self.bytes.data_ptr()
        self.tags = self.bytes.view(slots, self.stride_bytes)[:, host.expert_bytes : host.expert_bytes + 8]
        self.tags.fill_(0xFF)
        """-1: holds nobody."""

    def _too_many(self, free_bytes: int, whose: str) -> DoesNotFitError:
        return DoesNotFitError(
            f"{self.count} slots need {self.count * self.stride_bytes / 1e9:.1f} GB and {free_bytes / 1e9:.1f} GB of "
            f"{whose} memory are free: {free_bytes // self.stride_bytes} would fit"
        )

    def held(self) -> list[int]:
        """Whom each slot holds by its own tag, -1 for nobody."""
        return self.tags.contiguous().view(torch.int64).flatten().tolist()
