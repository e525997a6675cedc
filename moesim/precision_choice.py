"""Which version serves each access of an event, where experts are kept in two precisions.

    resident in high precision:                          that, whatever was needed
    else the miss rule says what the access needs:
        high: a miss, even if the low version is resident; the high version is copied
        low:  the low version, a hit if it is resident and copied if not
        neither (skipped): the low version if it is resident; else nothing is executed
"""

from collections.abc import Container, Iterable, Sequence

from moesim.events import Step
from moesim.policies.roles import OnMiss


class PrecisionChoice:
    """Versions of one event at a time; `versions` is called first."""

    def __init__(self, on_miss: OnMiss, layers: int, experts: int) -> None:
        self._on_miss = on_miss
        self._experts = experts
        self._first_low = layers * experts
        self._served: dict[int, int] = {}
        self._skipped: set[int] = set()

    def versions(self, step: Step, layer: int, accesses: Sequence[int], resident: Container[int]) -> list[int]:
        """The accesses, numbered as high-precision experts, each as the version that serves it."""
        base, low = layer * self._experts, self._first_low
        self._served, self._skipped = {}, set()
        missing = [expert - base for expert in accesses if expert not in resident]
        if not missing:
            return list(accesses)
        needs_low = set(self._on_miss.at_low_precision(step, layer, missing))
        fetched = set(self._on_miss.fetched(step, layer, missing))
        for expert in missing:
            number = base + expert
            if expert in fetched:
                if expert in needs_low:
                    self._served[number] = low + number
            elif low + number in resident:
                self._served[number] = low + number
            else:
                self._skipped.add(number)
        return self.served(accesses)

    def served(self, experts: Iterable[int]) -> list[int]:
        """Any of the event's experts, each as the version that serves it."""
        served = self._served
        return [served.get(expert, expert) for expert in experts]

    def fetched(self, missing: Iterable[int]) -> list[int]:
        """Those of the missing versions that are copied."""
        return [expert for expert in missing if expert not in self._skipped]

    def count_low(self, experts: Iterable[int]) -> int:
        """How many are in low precision."""
        return sum(expert >= self._first_low for expert in experts)
