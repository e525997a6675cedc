"""What a rule may know of the machine: plain numbers, at the centre of the hardware's ranges.

Some systems weigh the CPU against the link (Fiddler, FreeToken). Policies know no device, so they are told in `prepare`
what things take; the same numbers under every clock, so that decisions stay those of one machine.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Times of one expert on one machine, and the rates behind them."""

    cpu_ns_by_tokens: tuple[int, ...]
    """On the CPU, alone: for 1, 2, ... tokens, up to the window's largest step."""
    gpu_ns_by_tokens: tuple[int, ...]
    """On the GPU, once its weights are there: for 1, 2, ... tokens."""
    copy_ns: int
    """Of its weights, behind another copy."""
    link_bytes_per_s: float
    host_bytes_per_s: float
    """What the host's memory gives to copies and CPU together."""

    def cpu_ns(self, tokens: int) -> int:
        """An expert on the CPU."""
        return self.cpu_ns_by_tokens[tokens - 1]

    def fetched_ns(self, tokens: int) -> int:
        """An expert copied and run on the GPU."""
        return self.copy_ns + self.gpu_ns_by_tokens[tokens - 1]
