"""An expert in two parts: the top, which slots keep, and the bottom, which is copied at every use (MoEpic).

MoEpic (arXiv 2509.08342) cuts an expert along its intermediate dimension: the first columns of gate and up with the
matching rows of down are the top, the others the bottom. The outputs of both add up to the expert's, so nothing is
lost, and bytes and operations of a part are in proportion to its share. A part is a *version* of its expert
(`moesim/versions.py`): version 0 the top, version 1 the bottom. To the table of measured kernels a part is an expert
of fewer bytes.
"""

from dataclasses import dataclass, replace
from math import ceil

from moesim.model import Kernel
from moesim.versions import Versions


def top_bytes(expert_bytes: int, top_share: float) -> int:
    """Bytes of the top, rounded up; a share written as a decimal must not gain a byte by binary rounding."""
    return ceil(expert_bytes * top_share - 1e-6)


@dataclass(frozen=True)
class Parts(Versions):
    """Both parts of one model's experts; `top_share` of the bytes is above the cut."""

    top_share: float = 1.0

    @property
    def several(self) -> bool:
        """A top and a bottom."""
        return True

    @property
    def first_bytes(self) -> int:
        """Of a top."""
        return top_bytes(self.model.expert_bytes, self.top_share)

    @property
    def second_bytes(self) -> int:
        """Of a bottom."""
        return self.model.expert_bytes - self.first_bytes

    def kernel(self, version: int, experts: int, pairs: int) -> Kernel:
        """One part of `experts` distinct experts of a layer, over so many (token, expert) pairs."""
        whole = self.model.experts_kernel(experts, pairs)
        top_flops = round(whole.flops * self.top_share)
        if version:
            return replace(whole, flops=whole.flops - top_flops, hbm_bytes=experts * self.second_bytes)
        return replace(whole, flops=top_flops, hbm_bytes=experts * self.first_bytes)
