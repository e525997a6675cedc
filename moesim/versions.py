"""The forms in which an expert can be copied and executed beside the one that the model states.

A form is a *version*. Version v of expert e of layer l is numbered v·L·E + l·E + e, so caches, copies and slots treat
it like any other expert: number // E is its *place* (v·L + l), and number % E the expert within the layer. Version 0
is the model's own precision. A second version is the same expert in fewer bits, with bytes and kernels of its own.

Kernels of a low precision are taken to be fused: they read the packed weights, unpack in registers and multiply in
16 bit, as MARLIN does (arXiv 2408.11743), which reports close to the ratio of the bytes up to 16 to 32 tokens. So
dequantisation costs no bytes and no launch here. No profile has measured such a kernel; its time is the roofline's and
is marked so.
"""

from dataclasses import dataclass

from moesim.model import Kernel, ModelSpec, Precision


@dataclass(frozen=True)
class Versions:
    """The versions of one model's experts. `low` is the second one's precision; None where there is one version."""

    model: ModelSpec
    low: Precision | None = None

    @property
    def several(self) -> bool:
        """Whether there is a second version."""
        return self.low is not None

    @property
    def first_bytes(self) -> int:
        """Of an expert in version 0."""
        return self.model.expert_bytes

    @property
    def second_bytes(self) -> int:
        """Of an expert in version 1, or in version 0 where that is the only one."""
        return self.model.expert_bytes_in(self.low or self.model.expert_precision)

    @property
    def bytes_of_place(self) -> list[int]:
        """Bytes of one expert by place, version · L + layer."""
        layers = len(self.model.moe_layers)
        return [self.first_bytes] * layers + ([self.second_bytes] * layers if self.several else [])

    def kernel(self, version: int, experts: int, pairs: int) -> Kernel:
        """`experts` distinct experts of one layer, all in one version, over so many (token, expert) pairs."""
        return self.model.experts_kernel(experts, pairs, self.low if version else None)

    def groups(self, experts: list[int]) -> list[list[int]]:
        """Places in a list of experts, grouped into the kernels that run them: one for each version present."""
        if not self.several:
            return [list(range(len(experts)))]
        first_low = len(self.model.moe_layers) * self.model.experts
        high = [place for place, expert in enumerate(experts) if expert < first_low]
        low = [place for place, expert in enumerate(experts) if expert >= first_low]
        return [group for group in (high, low) if group]
