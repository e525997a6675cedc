"""Power, clocks, link traffic and throttling beside a run, sampled by a process of its own.

So the run's host thread never shares its interpreter with the sampler. `python -m hw_validate.nvml FILE` writes one
JSON line per sample until it is told to stop; instants are CLOCK_MONOTONIC, as those of `time.perf_counter_ns` are.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hw_validate.measurement import Telemetry

EVERY_S = 0.02

SLOWING = {
    "nvmlClocksEventReasonSwPowerCap": "sw_power_cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hw_slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "sw_thermal_slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "hw_thermal_slowdown",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "hw_power_brake_slowdown",
}
"""NVML's reasons for lower clocks that make a run slower; an idle GPU or an application's own clocks do not."""


def sample(nvml: Any, handle: Any) -> dict[str, float | list[str]]:
    """One reading of everything that the driver tells; what it does not tell is left out."""
    taken: dict[str, float | list[str]] = {"at_ns": time.monotonic_ns()}

    def read(name: str, call: Any, scale: float = 1.0) -> None:
        try:
            taken[name] = call() * scale
        except nvml.NVMLError:
            return

    read("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle), 1e-3)
    read("energy_j", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1e-3)
    read("sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    read("memory_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
    read("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    # The driver counts kilobytes over 20 ms; to the GPU is what it calls received.
    read(
        "received_bytes_per_s",
        lambda: nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES), 1e3,
    )
    try:
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        taken["reasons"] = [word for name, word in SLOWING.items() if reasons & getattr(nvml, name, 0)]
    except nvml.NVMLError:
        taken["reasons"] = []
    return taken


def keep_sampling(path: Path) -> None:
    """Write samples to `path` until standard input is closed by whoever started this process."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    stop = _input_closed()
    with path.open("w", encoding="ascii") as file:
        while not stop():
            file.write(json.dumps(sample(pynvml, handle)) + "\n")
            file.flush()
            time.sleep(EVERY_S)


def _input_closed() -> Any:
    """A function that says, without waiting, whether the parent has closed our standard input, or died."""
    import selectors

    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    return lambda: bool(selector.select(0))


class Sampler:
    """A sampling process for as long as the context lasts. Without NVML there are no samples, and nothing fails."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Sampler":
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "samples.jsonl"
        if self._enabled:
            self._process = subprocess.Popen(  # noqa: S603, our own module
                [sys.executable, "-m", "hw_validate.nvml", str(self._path)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None, "it was asked for"
            self._process.stdin.close()
            self._process.wait(timeout=10)
        self._folder.cleanup()

    def between(self, begin_ns: int, end_ns: int) -> Telemetry:
        """What was sampled between two instants of `time.perf_counter_ns`."""
        samples = []
        if self._path.exists():
            for line in self._path.read_text(encoding="ascii").splitlines():
                taken = json.loads(line) if line.endswith("}") else None  # the last line may be under way
                if taken is not None and begin_ns <= taken["at_ns"] <= end_ns:
                    samples.append(taken)
        return summarize(samples, (end_ns - begin_ns) / 1e9)


def summarize(samples: list[dict[str, Any]], seconds: float) -> Telemetry:
    """Means and extremes of some samples over a stretch of so many seconds."""

    def values(name: str) -> list[float]:
        return [each[name] for each in samples if name in each]

    def mean(name: str) -> float | None:
        found = values(name)
        return sum(found) / len(found) if found else None

    power = mean("power_w")
    return Telemetry(
        samples=len(samples), power_mean_w=power, power_max_w=max(values("power_w"), default=None),
        energy_j=None if power is None else power * seconds,
        sm_clock_mean_mhz=mean("sm_clock_mhz"), sm_clock_min_mhz=min(values("sm_clock_mhz"), default=None),
        memory_clock_mean_mhz=mean("memory_clock_mhz"), temperature_max_c=max(values("temperature_c"), default=None),
        link_receive_bytes_per_s=mean("received_bytes_per_s"),
        throttle_reasons=sorted({reason for each in samples for reason in each.get("reasons", [])}),
    )


if __name__ == "__main__":
    keep_sampling(Path(sys.argv[1]))
