"""What is made of NVML's readings, and of drivers that do not tell everything."""

import json
from types import SimpleNamespace

import pytest

from hw_validate.nvml import Sampler, sample, summarize


class NotToldError(Exception):
    pass


def driver(**told):
    """NVML as far as `sample` asks it; what is not in `told` is answered with an error."""

    def answer(name):
        def call(*_):
            if name not in told:
                raise NotToldError(name)
            return told[name]

        return call

    calls = (
        "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperature", "nvmlDeviceGetPcieThroughput", "nvmlDeviceGetCurrentClocksThrottleReasons",
    )
    return SimpleNamespace(
        NVMLError=NotToldError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0, NVML_PCIE_UTIL_RX_BYTES=1,
        nvmlClocksEventReasonSwPowerCap=4, nvmlClocksThrottleReasonHwSlowdown=8,
        nvmlClocksEventReasonSwThermalSlowdown=32, **{name: answer(name) for name in calls},
    )


def test_readings_are_in_watts_joules_and_bytes():
    taken = sample(
        driver(
            nvmlDeviceGetPowerUsage=350_500, nvmlDeviceGetTotalEnergyConsumption=2_000, nvmlDeviceGetClockInfo=1980,
            nvmlDeviceGetPcieThroughput=53_000_000, nvmlDeviceGetCurrentClocksThrottleReasons=4 + 32 + 1,
        ),
        None,
    )
    assert taken["power_w"] == pytest.approx(350.5)
    assert taken["energy_j"] == pytest.approx(2.0)
    assert taken["received_bytes_per_s"] == pytest.approx(53e9)
    assert taken["reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]  # 1 is an idle GPU: no reason to mark a run
    assert "temperature_c" not in taken


def test_a_throttled_stretch_is_marked_and_energy_is_power_times_time():
    samples = [
        {"power_w": 300.0, "sm_clock_mhz": 1980.0, "reasons": []},
        {"power_w": 500.0, "sm_clock_mhz": 1200.0, "reasons": ["hw_slowdown"]},
    ]
    found = summarize(samples, seconds=2.0)
    assert (found.power_mean_w, found.power_max_w, found.energy_j) == (400.0, 500.0, 800.0)
    assert found.sm_clock_min_mhz == 1200.0
    assert found.throttled
    assert not summarize(samples[:1], seconds=2.0).throttled
    nothing = summarize([], seconds=2.0)
    assert (nothing.samples, nothing.power_mean_w, nothing.energy_j) == (0, None, None)


def test_only_whole_samples_between_the_two_instants_count():
    with Sampler(enabled=False) as sampler:
        lines = [json.dumps({"at_ns": at, "power_w": 100.0 * at, "reasons": []}) for at in (1, 2, 3, 4)]
        sampler._path.write_text("\n".join(lines) + '\n{"at_ns": 3, "pow')
        found = sampler.between(2, 3)
    assert found.samples == 2
    assert found.power_mean_w == 250.0
