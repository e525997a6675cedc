"""Before anything runs: what the machine has, what a validation needs of it, and what will not fit."""

from dataclasses import dataclass
from importlib.util import find_spec

from hw_validate.driver import HardwareError
from hw_validate.grid import Validation
from hw_validate.measurement import MachineFacts
from moesim.model import ModelSpec

RESERVE_BYTES = 4_000_000_000
"""Host memory that is left to the system and to the harness itself."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what, how it stands, and whether that is well."""

    what: str
    told: str
    well: bool


def check_device(device: str) -> None:
    """Raise HardwareError, one line, when the wanted device is not there."""
    try:
        import torch
    except ModuleNotFoundError:
        raise HardwareError("torch is not installed: pip install 'moesim[hw]'") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise HardwareError("no CUDA device here: use a machine with one, or --device cpu to exercise the harness")


def check_checkpoints() -> None:
    """Raise HardwareError, one line, when no checkpoint can be read: that takes transformers."""
    if find_spec("transformers") is None:
        raise HardwareError("transformers is not installed: pip install 'moesim[hw,record]'")


def examine(machine: MachineFacts, validation: Validation | None, free_host_bytes: int) -> list[Finding]:
    """Everything worth knowing before a run on this machine."""
    findings = [
        Finding("GPU", "not used: --device cpu rehearses on the processor", True),
        Finding("torch", machine.torch, True),
    ] if machine.device == "cpu" else [
        Finding("GPU", machine.gpu or "none", bool(machine.gpu)),
        Finding("GPU memory", f"{machine.gpu_memory_bytes / 1e9:.1f} GB", bool(machine.gpu)),
        Finding("driver", f"{machine.driver or 'unknown'}, CUDA {machine.cuda or 'none'}, torch {machine.torch}", True),
        Finding("link", machine.link or "unknown", True),
    ]
    findings += [
        Finding("host", f"{machine.processor}, {machine.processors} processors, {machine.operating_system}", True),
        Finding(
            "host memory",
            f"{free_host_bytes / 1e9:.1f} GB free of {machine.memory_bytes / 1e9:.1f} GB",
            free_host_bytes > RESERVE_BYTES,
        ),
    ]
    for model in validation.models if validation else []:
        spec = ModelSpec.load(model.model)
        if model.layers is not None:
            spec = spec.first_layers(model.layers)
        layer_bytes = spec.experts * spec.expert_bytes
        need = len(spec.moe_layers) * layer_bytes
        fits = max(0, free_host_bytes - RESERVE_BYTES) // layer_bytes
        told = f"{need / 1e9:.3g} GB of experts in {'host memory' if machine.device == 'cpu' else 'pinned memory'}"
        if need + RESERVE_BYTES > free_host_bytes:
            told += f": {fits} of {len(spec.moe_layers)} layers fit"
            if fits:
                told += f" (`layers: {fits}` in the validation runs these alone)"
        findings.append(Finding(spec.name, told, need + RESERVE_BYTES <= free_host_bytes))
    return findings
