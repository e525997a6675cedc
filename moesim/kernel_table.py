"""Measured kernel times, and what lies between them.

A kernel's place is its experts, its tokens per expert and its bytes per expert; a kernel without experts has all its
tokens and bytes. Between measured places time is linear in each coordinate in turn, which is exact for kernels bound by
memory: one more expert of the same size costs the same again. Outside what was measured nothing is guessed: the
caller falls back to the roofline, which is marked.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.model import Kernel
from moesim.quantity import End

Place = tuple[float, float, float]


class KernelRow(BaseModel):
    """One measured time, with the spread of its repetitions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: str
    mode: Literal["eager", "graph"]
    hbm_bytes: int = Field(ge=0)
    """Bytes of the kernel's work (`moesim.model.Kernel`)."""
    experts: int = Field(ge=0)
    tokens: int = Field(ge=1)
    ns: float = Field(gt=0)
    low_ns: float = Field(gt=0)
    high_ns: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "KernelRow":
        if not self.low_ns <= self.ns <= self.high_ns:
            raise ValueError(f"expected low_ns <= ns <= high_ns, not {self.low_ns:g}, {self.ns:g}, {self.high_ns:g}")
        return self


def _place(experts: int, tokens: int, hbm_bytes: int) -> Place:
    share = max(1, experts)
    return (experts, tokens / share, hbm_bytes / share)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Measured values of one coordinate, ascending, and what is known at each: a time, or the next coordinate."""

    values: list[float]
    below: "list[_Axis | float]"


def _axis(times: Mapping[Place, float], coordinate: int = 0) -> _Axis:
    parts: dict[float, dict[Place, float]] = defaultdict(dict)
    for place, time in times.items():
        parts[place[coordinate]][place] = time
    values = sorted(parts)
    if coordinate == 2:  # the last one holds times
        return _Axis(values, [next(iter(parts[value].values())) for value in values])
    return _Axis(values, [_axis(parts[value], coordinate + 1) for value in values])


def _between(known: _Axis | float, place: Place, coordinate: int = 0) -> float | None:
    """The time at `place`, linear between the measured values around it; None where there are none."""
    if isinstance(known, float):
        return known
    wanted = place[coordinate]
    right = bisect_left(known.values, wanted)
    if right < len(known.values) and known.values[right] == wanted:
        return _between(known.below[right], place, coordinate + 1)
    if right in (0, len(known.values)):
        return None
    left_ns, right_ns = (_between(known.below[side], place, coordinate + 1) for side in (right - 1, right))
    if left_ns is None or right_ns is None:
        return None
    share = (wanted - known.values[right - 1]) / (known.values[right] - known.values[right - 1])
    return left_ns + (right_ns - left_ns) * share


class KernelTable:
    """Rows looked up by kernel, mode and place."""

    def __init__(self, rows: Sequence[KernelRow], end: End = "centre") -> None:
        self._rows = list(rows)
        times: dict[tuple[str, str], dict[Place, float]] = defaultdict(dict)
        for row in rows:
            time = {"centre": row.ns, "fast": row.low_ns, "slow": row.high_ns}[end]
            times[row.kernel, row.mode][_place(row.experts, row.tokens, row.hbm_bytes)] = float(time)
        self._axes = {key: _axis(known) for key, known in times.items()}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def at(self, end: End) -> "KernelTable":
        """The same rows at one end of their spread."""
        return self if end == "centre" or not self._rows else KernelTable(self._rows, end)

    def look_up(self, kernel: Kernel, mode: Literal["eager", "graph"]) -> float | None:
        """Nanoseconds: exact at measured places, linear between them, None outside."""
        axis = self._axes.get((kernel.name, mode))
        if axis is None:
            return None
        return _between(axis, _place(kernel.experts, kernel.tokens, kernel.hbm_bytes))


def duplicate(rows: Sequence[KernelRow]) -> KernelRow | None:
    """The first row that measures what an earlier one does, if there is one."""
    seen = set()
    for row in rows:
        key = (row.kernel, row.mode, row.experts, row.tokens, row.hbm_bytes)
        if key in seen:
            return row
        seen.add(key)
    return None
