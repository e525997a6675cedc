"""Measured kernel times, and what lies between them.

A row holds for one kernel, execution mode, number of experts and of tokens. Between rows that differ in bytes alone
(context, expert size) times are interpolated linearly, which is exact where a kernel is bound by memory. Outside the
measured range nothing is guessed: the caller falls back to the roofline, which is marked.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moesim.model import Kernel
from moesim.quantity import End


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


class KernelTable:
    """Rows grouped by kernel, mode, experts and tokens; looked up by the bytes that the kernel moves."""

    def __init__(self, rows: Sequence[KernelRow], end: End = "centre") -> None:
        self._rows = list(rows)
        curves: dict[tuple[str, str, int, int], list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            time = {"centre": row.ns, "fast": row.low_ns, "slow": row.high_ns}[end]
            curves[row.kernel, row.mode, row.experts, row.tokens].append((row.hbm_bytes, time))
        self._curves = {key: sorted(points) for key, points in curves.items()}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def at(self, end: End) -> "KernelTable":
        """The same rows at one end of their spread."""
        return self if end == "centre" or not self._rows else KernelTable(self._rows, end)

    def look_up(self, kernel: Kernel, mode: Literal["eager", "graph"]) -> float | None:
        """Nanoseconds, exact at measured points and linear in bytes between them; None outside."""
        points = self._curves.get((kernel.name, mode, kernel.experts, kernel.tokens))
        if not points:
            return None
        place = bisect_left(points, (kernel.hbm_bytes, 0.0))
        if place < len(points) and points[place][0] == kernel.hbm_bytes:
            return points[place][1]
        if place in (0, len(points)):
            return None
        (left, left_ns), (right, right_ns) = points[place - 1], points[place]
        return left_ns + (right_ns - left_ns) * (kernel.hbm_bytes - left) / (right - left)
