"""All microbenchmarks of a machine, as the profile that the simulator reads: configs/hardware/<gpu>.yaml."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from hw_validate.calibrate.cpu_figures import cpu_expert_rows, cpu_figures
from hw_validate.calibrate.host import device_calls, round_trips
from hw_validate.calibrate.kernels import dense_rows, expert_rows, switch_ns
from hw_validate.calibrate.link import LinkBench, measure_link
from hw_validate.calibrate.loop import loop_costs
from hw_validate.calibrate.processor import cpu_expert_ns, memory_bandwidth
from hw_validate.calibrate.samples import quantity
from hw_validate.cuda import CudaGPU
from hw_validate.dense import MAX_PAIRS, DenseLayers
from hw_validate.measurement import MachineFacts
from hw_validate.storage import HostExperts, Slots
from moesim.atomic_write import atomic_write
from moesim.hardware import CPU_FIGURES, HardwareSpec
from moesim.kernel_table import KernelRow
from moesim.model import ModelSpec
from moesim.quantity import Quantity

LAYERS = 8
"""Of each model are built: enough that no layer's weights are still in the GPU's cache when its turn comes again."""
LINK_BYTES = 1_073_741_824
SLOT_BYTES = 1_300_000_000
MOST_TOKENS = 128
"""Of a step, for the expert kernels' table."""


@dataclass(frozen=True)
class Shape:
    """A model at one size of step: `tokens` of `sequences` sequences, each `context_tokens` long."""

    model: str
    tokens: int
    sequences: int
    context_tokens: int


def calibrate(
    shapes: Sequence[Shape], base: HardwareSpec, machine: MachineFacts, *, repetitions: int = 9,
    tell: Callable[[str], None] = lambda line: None,
) -> HardwareSpec:
    """Measure this machine, and return its profile.

    `base` gives what no microbenchmark here measures: the data sheet's peaks, and the shares of them that the roofline
    takes where no kernel row reaches. `shapes` say for which models and batches kernels are timed.
    """
    tell("link")
    processors = os.cpu_count() or 1
    with HostExperts(16, LINK_BYTES // 16, pinned=True) as memory:
        pinned = torch.from_numpy(memory.bytes)
        link = measure_link(pinned, repetitions, max(1, processors - 4))
        observations = dict(link.observations)
        observations |= memory_bandwidth(LinkBench(pinned), max(1, processors - 4))
        del pinned
    figures: dict[str, Quantity] = dict(link.figures)
    rows: list[KernelRow] = []
    for model_name in dict.fromkeys(shape.model for shape in shapes):
        model = ModelSpec.load(model_name)
        tell(f"{model_name}: experts on the CPU")
        observations |= cpu_expert_ns(model, min(5, repetitions))
        rows += cpu_expert_rows(model, observations)
        slots = min(256, max(model.experts, SLOT_BYTES // model.expert_bytes))
        with HostExperts(slots, model.expert_bytes, pinned=True) as host:
            host.fill(torch.device("cuda"), seed=1)
            room = Slots(slots, host, torch.device("cuda"))
            own = [shape for shape in shapes if shape.model == model_name]
            for shape in sorted(own, key=lambda each: each.tokens):
                tell(f"{model_name}: kernels of steps of {shape.tokens} tokens")
                built = min(LAYERS, model.layers)
                dense = DenseLayers(model, built, shape.tokens, shape.sequences, shape.context_tokens)
                dense.capture()
                timed = {(row.kernel, row.tokens, row.hbm_bytes) for row in rows}
                rows += [
                    row for row in dense_rows(dense, repetitions)
                    if (row.kernel, row.tokens, row.hbm_bytes) not in timed  # a prefill's head is a decode step's
                ]
                device = CudaGPU(dense, host, room, 100_000)
                device.load_everything()
                if "read_back_ns" not in figures:
                    tell(f"{model_name}: what calls cost the host")
                    figures["switch_ns"] = quantity(
                        switch_ns(device, dense, slots, repetitions),
                        f"a chain of attention, router and experts less its parts, {repetitions} readings",
                    )
                    figures |= _host_figures(device, dense, model_name, figures, rows, repetitions)
                    device.reset()
            tell(f"{model_name}: expert kernels")
            most = min(MOST_TOKENS, MAX_PAIRS // model.top_k)
            wide = DenseLayers(model, 1, most, 1, most)
            rows += expert_rows(CudaGPU(wide, host, room, 100_000), wide, slots, max(3, repetitions // 2))
        torch.cuda.empty_cache()
    if not base.figures.keys().isdisjoint(CPU_FIGURES):  # a profile has all of them or none
        figures |= cpu_figures(observations, rows)
    return HardwareSpec(
        name=base.name, title=base.title, link=base.link,
        figures={**base.figures, **figures}, kernels=rows,
        measured_on={key: str(value) for key, value in machine.model_dump().items()},
        observations=observations,
    )


def _host_figures(
    device: CudaGPU, dense: DenseLayers, model_name: str, figures: dict[str, Quantity], rows: Iterable[KernelRow],
    repetitions: int,
) -> dict[str, Quantity]:
    """Figures of the host's calls, through a small model's own loop."""
    model = dense.model
    resident, per_copy = loop_costs(model_name, repetitions)
    calls = device_calls(device, dense, model.expert_bytes, resident, per_copy, repetitions)
    copy_ns = figures["copy_descriptor_ns"].value + model.expert_bytes * 1e9 / figures["link_bytes_per_s"].value
    router_ns = next(row.ns for row in rows if row.kernel == "router")
    device.reset()  # chains of kernels have told the host more than this device knows of
    return calls | round_trips(device, dense, model.expert_bytes, copy_ns, router_ns, calls, repetitions)


def save_profile(spec: HardwareSpec, path: Path) -> None:
    """Write a profile as YAML that people can read. Raises InputError when it cannot be written."""
    content = spec.model_dump(mode="json", exclude_defaults=True)
    header = (
        "# Measured by `hw_validate calibrate`: microbenchmarks alone, no time of a token was looked at.\n"
        "# What a calibration does not measure (peaks, shares for the roofline) keeps its own source.\n"
    )
    with atomic_write(path) as file:
        file.write(header.encode())
        file.write(yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True).encode())
