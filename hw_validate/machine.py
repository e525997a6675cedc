"""What this machine is: GPU, driver, system, processor, memory, link. Read, never changed."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from hw_validate.measurement import MachineFacts


def describe(device: str) -> MachineFacts:
    """The machine, as found; `device` is "cuda" or "cpu"."""
    gpu = driver = link = ""
    gpu_memory = 0
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu, gpu_memory = properties.name, properties.total_memory
        driver, link = _from_driver()
    return MachineFacts(
        device=device, gpu=gpu, driver=driver, cuda=torch.version.cuda or "", torch=torch.__version__,
        operating_system=f"{platform.system()} {platform.release()}", processor=_processor(),
        processors=os.cpu_count() or 1, memory_bytes=_memory_bytes(), gpu_memory_bytes=gpu_memory, link=link,
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _from_driver() -> tuple[str, str]:
    """Driver version and link, as NVML tells them."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        generation = pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)
        width = pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle)
        return str(pynvml.nvmlSystemGetDriverVersion()), f"PCIe {generation}.0 x{width}"
    except pynvml.NVMLError as error:
        return "", f"unknown ({error})"
    finally:
        pynvml.nvmlShutdown()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
