"""HardwareSpec: a machine as figures, each with its range and source; Hardware: one point of these ranges.

A profile is built from data sheets and published microbenchmarks, or by `hw_validate calibrate`; never from an
end-to-end time that it is then used to predict (docs/hardware-profiles.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import floor, isfinite
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from moesim.catalogue import find
from moesim.errors import ConfigError, nearest
from moesim.kernel_table import KernelRow, KernelTable, duplicate
from moesim.model import Kernel
from moesim.quantity import End, Quantity, exact
from moesim.yaml_file import read_model

Mode = Literal["eager", "graph"]

FIGURES: dict[str, bool] = {
    "link_bytes_per_s": True,
    "copy_start_up_ns": False,
    "copy_descriptor_ns": False,
    "enqueue_copy_ns": False,
    "enqueue_kernel_ns": False,
    "enqueue_graph_ns": False,
    "record_event_ns": False,
    "wait_event_ns": False,
    "read_back_ns": False,
    "memory_bytes": True,
    "hbm_bytes_per_s": True,
    "hbm_share": True,
    "flops_per_s": True,
    "flops_share": True,
    "kernel_floor_ns": False,
    "event_latency_ns": False,
    "loop_layer_ns": False,
    "switch_ns": False,
    "host_bytes_per_s": True,
    "cpu_bytes_per_s": True,
    "cpu_flops_per_s": True,
    "cpu_expert_floor_ns": False,
    "disk_bytes_per_s": True,
    "disk_latency_ns": False,
}
"""Every figure, and whether more of it makes runs faster."""

MEASURED_ONLY = ("event_latency_ns", "loop_layer_ns", "switch_ns")
"""Figures that no data sheet gives: nothing, until a calibration measures them."""

CPU_FIGURES = ("host_bytes_per_s", "cpu_bytes_per_s", "cpu_flops_per_s", "cpu_expert_floor_ns")
"""Figures that only experts on the CPU need: a profile has all of them or none."""

DISK_FIGURES = ("disk_bytes_per_s", "disk_latency_ns")
"""Figures that only experts on disk need: likewise."""


def nearest_ns(value: float) -> int:
    """The one rounding of times: to the nearest nanosecond, half up."""
    return floor(value + 0.5)


@dataclass(frozen=True)
class Hardware:
    """Plain numbers of one machine: what a device computes with."""

    link_bytes_per_s: float
    """Host to device, pinned memory, large copies."""
    copy_start_up_ns: int
    """Paid by a copy that finds the engine idle."""
    copy_descriptor_ns: int
    """Paid by every copy."""
    enqueue_copy_ns: int
    enqueue_kernel_ns: int
    """Host time of one eager launch."""
    enqueue_graph_ns: int
    record_event_ns: int
    wait_event_ns: int
    read_back_ns: int
    """From the end of the router's kernel, or from the host's call if that is later, to the ids on the host."""
    memory_bytes: int
    hbm_bytes_per_s: float
    """Peak of the data sheet; `hbm_share` of it is reached."""
    hbm_share: float
    flops_per_s: float
    """Dense peak at the model's precision; `flops_share` of it is reached."""
    flops_share: float
    kernel_floor_ns: int
    """The least time that one kernel takes on the GPU."""
    event_latency_ns: int
    """From the end of a copy to the start of a kernel on another stream that waited for it, or the other way round."""
    loop_layer_ns: int
    """Host time of the replay loop itself, per event: everything between what it enqueues."""
    switch_ns: int
    """How long a stream stands still between kernels launched one by one and a captured graph behind them."""
    host_bytes_per_s: float
    """What the host's memory gives to copies and CPU together; 0, like all that follow, where nothing is known."""
    cpu_bytes_per_s: float
    """At which the CPU reads a large expert's weights, alone."""
    cpu_flops_per_s: float
    """Which the CPU reaches on experts with many tokens."""
    cpu_expert_floor_ns: int
    """Added for each expert on the CPU: handing it to the cores and gathering their parts."""
    disk_bytes_per_s: float
    """Of large reads."""
    disk_latency_ns: int
    """Paid by a read that finds the disk idle."""
    kernel_table: KernelTable

    def cpu_expert_ns(self, kernel: Kernel) -> int:
        """How long all cores work on one expert, alone: measured where the table reaches, else from the figures."""
        measured = self.kernel_table.look_up(kernel, "eager")
        if measured is not None:
            return nearest_ns(measured)
        work_s = max(kernel.hbm_bytes / self.cpu_bytes_per_s, kernel.flops / self.cpu_flops_per_s)
        return self.cpu_expert_floor_ns + nearest_ns(work_s * 1e9)

    def kernel_ns(self, kernel: Kernel, mode: Mode, launches: int) -> int:
        """How long a kernel group of `launches` kernels runs: measured where the table reaches, else roofline."""
        measured = self.kernel_table.look_up(kernel, mode)
        if measured is not None:
            return nearest_ns(measured)
        memory_s = kernel.hbm_bytes / (self.hbm_bytes_per_s * self.hbm_share)
        arithmetic_s = kernel.flops / (self.flops_per_s * self.flops_share)
        return max(nearest_ns(max(memory_s, arithmetic_s) * 1e9), launches * self.kernel_floor_ns)

    def kernel_source(self, kernel: Kernel, mode: Mode) -> Literal["measured", "roofline"]:
        """Where `kernel_ns` takes a kernel's time from."""
        return "roofline" if self.kernel_table.look_up(kernel, mode) is None else "measured"


class HardwareSpec(BaseModel):
    """What configs/hardware/NAME.yaml may say."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    name: str
    title: str
    link: str
    """The link in words: PCIe 4.0 x16."""
    figures: dict[str, Quantity]
    kernels: list[KernelRow] = []
    measured_on: dict[str, str] = Field(default={})
    """Driver, clocks and the like of a calibration; empty for a profile from data sheets."""
    observations: dict[str, Quantity] = {}
    """Measured beside the figures and read by no run: copies by size, pageable memory, experts on the CPU."""

    @field_validator("figures")
    @classmethod
    def _complete(cls, figures: dict[str, Quantity]) -> dict[str, Quantity]:
        for name in figures:
            if name not in FIGURES:
                raise ValueError(f"unknown figure {name!r}: {nearest(name, FIGURES)}")
        for name in FIGURES:
            if name in MEASURED_ONLY:
                continue
            if any(name in group and figures.keys().isdisjoint(group) for group in (CPU_FIGURES, DISK_FIGURES)):
                continue
            if name not in figures:
                raise ValueError(f"figure {name} is missing")
        for name, quantity in figures.items():
            _check(name, quantity.low, quantity.high)
        return figures

    @field_validator("kernels")
    @classmethod
    def _measured_once(cls, rows: list[KernelRow]) -> list[KernelRow]:
        again = duplicate(rows)
        if again is not None:
            raise ValueError(
                f"{again.kernel}, {again.mode}, {again.experts} experts, {again.tokens} tokens: measured twice"
            )
        return rows

    @classmethod
    def load(cls, name_or_path: str) -> "HardwareSpec":
        """The machine of configs/hardware/NAME.yaml, or of another file.

        Raises:
            ConfigError: nothing by that name, or a file that breaks a rule.
        """
        return read_model(find("hardware", name_or_path), cls)

    def override(self, values: Mapping[str, float]) -> "HardwareSpec":
        """The same machine with some figures set, without a range.

        Raises:
            ConfigError: an unknown figure, or a value that it cannot have.
        """
        figures = dict(self.figures)
        for name, value in values.items():
            if name not in FIGURES:
                raise ConfigError(f"hardware.{name}: unknown figure: {nearest(name, FIGURES)}")
            try:
                _check(name, value, value)
            except ValueError as error:
                raise ConfigError(f"hardware.{error}") from None
            figures[name] = exact(value, "set by the user")
        return self.model_copy(update={"figures": figures})

    def check_cpu(self, why: str) -> None:
        """Raise ConfigError, in one line that says `why`, where nothing is known of the host's CPU and memory."""
        missing = [name for name in CPU_FIGURES if name not in self.figures]
        if missing:
            raise ConfigError(f"hardware {self.name}: no figure {missing[0]}: {why}")

    def check_disk(self, why: str) -> None:
        """Raise ConfigError, in one line that says `why`, where nothing is known of the host's disk."""
        missing = [name for name in DISK_FIGURES if name not in self.figures]
        if missing:
            raise ConfigError(f"hardware {self.name}: no figure {missing[0]}: {why}")

    @cached_property
    def _table(self) -> KernelTable:
        return KernelTable(self.kernels)

    def at(self, end: End) -> Hardware:
        """The centre of all ranges, or all of them at the end that makes runs faster or slower."""
        numbers = {
            name: self.figures[name].at(end, more_is_faster=more_is_faster) if name in self.figures else 0.0
            for name, more_is_faster in FIGURES.items()
        }
        whole = {
            name: nearest_ns(value) for name, value in numbers.items() if name.endswith("_ns") or name == "memory_bytes"
        }
        return Hardware(**{**numbers, **whole}, kernel_table=self._table.at(end))  # type: ignore[arg-type]


def _check(name: str, low: float, high: float) -> None:
    """Raise ValueError where a figure's range holds a value that no machine has."""
    if not isfinite(high):
        raise ValueError(f"{name} = {high}: not a finite number")
    if FIGURES[name] and low <= 0:
        raise ValueError(f"{name} = {low:g}: must be more than 0")
    if low < 0:
        raise ValueError(f"{name} = {low:g}: must not be negative")
    if name.endswith("_share") and high > 1:
        raise ValueError(f"{name} = {high:g}: a share is at most 1")
