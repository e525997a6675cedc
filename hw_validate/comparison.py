"""Both worlds side by side: one row of comparison.parquet per cell, in the columns of `SCHEMA`.

The unit of time is one step: an output token of every sequence when decoding (TPOT), the pass over a prompt in
prefill, where the `tpot_…` columns hold the time of a prefill step. Hits, misses and bytes are those of all measured
steps together.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hw_validate.interval import mean_interval
from hw_validate.measurement import TIME_CLASSES, MachineFacts, Measurement
from hw_validate.validation import Validation
from moesim.atomic_write import atomic_write

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        # what was run
        pa.field("device", pa.string()),
        pa.field("gpu", pa.string()),
        pa.field("model", pa.string()),
        pa.field("layers", pa.int64()),
        pa.field("layers_of_model", pa.int64()),
        pa.field("trace", pa.string()),
        pa.field("synthetic", pa.bool_()),
        pa.field("policy", pa.string()),
        pa.field("lossless", pa.bool_()),
        pa.field("timing_dependent", pa.bool_()),
        pa.field("cache_fraction", pa.float64()),
        pa.field("phase", pa.string()),
        pa.field("batch_tokens", pa.int64()),
        pa.field("context_tokens", pa.int64()),
        pa.field("warmup_steps", pa.int64()),
        pa.field("steps_measured", pa.int64()),
        # time
        pa.field("tpot_measured_ns", pa.float64()),
        pa.field("tpot_measured_low_ns", pa.float64()),
        pa.field("tpot_measured_high_ns", pa.float64()),
        pa.field("tpot_measured_block_steps", pa.int64()),
        pa.field("tpot_simulated_ns", pa.float64()),
        pa.field("tpot_error", pa.float64()),
        *(pa.field(f"{name}_{world}_ns", pa.float64()) for name in TIME_CLASSES for world in ("measured", "simulated")),
        # decisions
        pa.field("hits_measured", pa.int64()),
        pa.field("hits_simulated", pa.int64()),
        pa.field("misses_measured", pa.int64()),
        pa.field("misses_simulated", pa.int64()),
        pa.field("bytes_measured", pa.int64()),
        pa.field("bytes_simulated", pa.int64()),
        pa.field("executed", pa.int64()),
        pa.field("executed_differently", pa.int64()),
        pa.field("decisions_compared", pa.int64()),
        pa.field("decisions_different", pa.int64()),
        pa.field("sequences_identical", pa.bool_()),
        pa.field("output_sha256", pa.string()),
        pa.field("output_steps", pa.int64()),
        # the machine meanwhile
        pa.field("power_mean_w", pa.float64()),
        pa.field("energy_per_token_j", pa.float64()),
        pa.field("sm_clock_mean_mhz", pa.float64()),
        pa.field("sm_clock_min_mhz", pa.float64()),
        pa.field("throttled", pa.bool_()),
        pa.field("throttle_reasons", pa.list_(pa.string())),
    ]
)


def rows_of(validation: Validation) -> list[Row]:
    """One row per cell, in the order of model, phase, batch, cache and policy."""
    rows = [row_of(each, validation.machine) for each in validation.measurements]
    keys = ("model", "phase", "batch_tokens", "cache_fraction", "policy")
    return sorted(rows, key=lambda row: tuple(row[key] for key in keys))


def row_of(measurement: Measurement, machine: MachineFacts) -> Row:
    """A cell as a row of `SCHEMA`; None stands for what was not measured."""
    cell, measured, simulated = measurement.cell, measurement.measured, measurement.simulated
    telemetry = measurement.telemetry
    interval = mean_interval(measured.step_ns)
    steps = len(measured.step_ns)
    # A cell does not say how many tokens a prefill step holds, so energy per token is told of decoding alone.
    energy = telemetry.energy_j if cell.phase == "decode" else None
    return {
        "device": machine.device,
        "gpu": machine.gpu,
        **{name: getattr(cell, name) for name in SCHEMA.names if name in type(cell).model_fields},
        "lossless": measurement.lossless,
        "timing_dependent": measurement.timing_dependent,
        "steps_measured": steps,
        "tpot_measured_ns": measured.tpot_ns,
        "tpot_measured_low_ns": interval.low if interval else None,
        "tpot_measured_high_ns": interval.high if interval else None,
        "tpot_measured_block_steps": interval.block_steps if interval else None,
        "tpot_simulated_ns": simulated.tpot_ns,
        "tpot_error": simulated.tpot_ns / measured.tpot_ns - 1,
        **{f"{name}_measured_ns": getattr(measured, f"{name}_ns") for name in TIME_CLASSES},
        **{f"{name}_simulated_ns": getattr(simulated, f"{name}_ns") for name in TIME_CLASSES},
        "hits_measured": measured.hits,
        "hits_simulated": simulated.hits,
        "misses_measured": measured.misses,
        "misses_simulated": simulated.misses,
        "bytes_measured": measured.bytes_copied,
        "bytes_simulated": simulated.bytes_copied,
        "executed": measurement.executed,
        "executed_differently": measurement.executed_differently,
        "decisions_compared": measurement.decisions_compared,
        "decisions_different": measurement.decisions_different,
        "sequences_identical": sequences_identical(measurement),
        "output_sha256": measurement.output_sha256,
        "output_steps": measurement.output_steps,
        "power_mean_w": telemetry.power_mean_w,
        "energy_per_token_j": None if energy is None else energy / (steps * cell.batch_tokens),
        "sm_clock_mean_mhz": telemetry.sm_clock_mean_mhz,
        "sm_clock_min_mhz": telemetry.sm_clock_min_mhz,
        "throttled": telemetry.throttled,
        "throttle_reasons": telemetry.throttle_reasons,
    }


def sequences_identical(measurement: Measurement) -> bool | None:
    """Whether both worlds executed and decided the same, place by place; None if neither was compared."""
    if not measurement.executed and not measurement.decisions_compared:
        return None
    counts = [(each.hits, each.misses, each.bytes_copied) for each in (measurement.measured, measurement.simulated)]
    different = measurement.executed_differently + measurement.decisions_different
    return different == 0 and counts[0] == counts[1]


def write_comparison(rows: list[Row], path: Path) -> None:
    """Write comparison.parquet, whole or not at all. Raises InputError when it cannot be written."""
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
