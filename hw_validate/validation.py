"""A validation folder, read: the machine, every cell measured so far, and what else there is."""

from dataclasses import dataclass
from pathlib import Path

from hw_validate.measurement import Limits, MachineFacts, Measurement, Timelines, load
from moesim.errors import ConfigError


@dataclass(frozen=True)
class Validation:
    """What the report is made from; `limits` and `timelines` are None where they were not measured."""

    machine: MachineFacts
    measurements: list[Measurement]
    limits: Limits | None
    timelines: Timelines | None


def read_validation(folder: Path) -> Validation:
    """Read machine.json, cells/*.json and, where they exist, limits.json and timelines.json.

    Raises:
        ConfigError: a file is missing, is not what hw_validate writes, or there is no cell.
    """
    files = sorted((folder / "cells").glob("*.json"))
    if not files:
        raise ConfigError(f"{folder / 'cells'}: no measured cell; `hw_validate run` writes them")
    measurements: list[Measurement] = []
    found: dict[str, Path] = {}
    for file in files:
        measurement = load(file, Measurement)
        _check(measurement, file)
        name = measurement.cell.name
        if name in found:
            raise ConfigError(f"{file}: the cell {name} is also in {found[name].name}; remove one of them")
        found[name] = file
        measurements.append(measurement)
    return Validation(
        machine=load(folder / "machine.json", MachineFacts),
        measurements=measurements,
        limits=load(path, Limits) if (path := folder / "limits.json").exists() else None,
        timelines=load(path, Timelines) if (path := folder / "timelines.json").exists() else None,
    )


def _check(measurement: Measurement, file: Path) -> None:
    for name, world in (("measured", measurement.measured), ("simulated", measurement.simulated)):
        if not world.step_ns or min(world.step_ns) <= 0:
            raise ConfigError(f"{file}: {name}.step_ns must hold the time of at least one step, each above 0 ns")
    if not 0 <= measurement.cell.cache_fraction <= 1:
        raise ConfigError(f"{file}: cell.cache_fraction = {measurement.cell.cache_fraction}: must be from 0 to 1")
