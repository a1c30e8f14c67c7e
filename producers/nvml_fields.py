"""Which NVML call gives which metric, in the catalogue's unit. ``lib`` is the nvidia-ml-py module throughout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

MIB: Final = 1 << 20

Read = Callable[[Any, Any], Mapping[str, float]]
"""(module, device handle) -> values by metric; raises ``NVMLError`` where the device has no such thing."""


class Reader(NamedTuple):
    """One NVML call and the metrics it gives: tried together, given up together where a device lacks it."""

    name: str
    read: Read


def _one(metric: str, read: Callable[[Any, Any], float]) -> Reader:
    return Reader(metric, lambda lib, handle: {metric: float(read(lib, handle))})


def _utilization(lib: Any, handle: Any) -> Mapping[str, float]:
    rates = lib.nvmlDeviceGetUtilizationRates(handle)
    return {"DCGM_FI_DEV_GPU_UTIL": rates.gpu, "DCGM_FI_DEV_MEM_COPY_UTIL": rates.memory}


def _memory(lib: Any, handle: Any) -> Mapping[str, float]:
    info = lib.nvmlDeviceGetMemoryInfo(handle, lib.nvmlMemory_v2)
    usable = info.total - info.reserved
    return {
        "DCGM_FI_DEV_FB_TOTAL": info.total // MIB,
        "DCGM_FI_DEV_FB_FREE": info.free // MIB,
        "DCGM_FI_DEV_FB_USED": info.used // MIB,
        "DCGM_FI_DEV_FB_RESERVED": info.reserved // MIB,
        "DCGM_FI_DEV_FB_USED_PERCENT": round(info.used / usable, 6) if usable else 0.0,
    }


def _rows(lib: Any, handle: Any) -> Mapping[str, float]:
    corrected, uncorrected, pending, failure = lib.nvmlDeviceGetRemappedRows(handle)
    return {
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": corrected,
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": uncorrected,
        "DCGM_FI_DEV_ROW_REMAP_PENDING": pending,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": failure,
    }


def _ecc(metric: str, error: str, counter: str) -> Reader:
    def read(lib: Any, handle: Any) -> float:
        return lib.nvmlDeviceGetTotalEccErrors(
            handle, getattr(lib, f"NVML_MEMORY_ERROR_TYPE_{error}"), getattr(lib, f"NVML_{counter}_ECC")
        )

    return _one(metric, read)


def _violation(metric: str, policy: str) -> Reader:
    return _one(
        metric,
        lambda lib, handle: (
            lib.nvmlDeviceGetViolationStatus(handle, getattr(lib, f"NVML_PERF_POLICY_{policy}")).violationTime
        ),
    )


def _retired(metric: str, cause: str) -> Reader:
    return _one(
        metric,
        lambda lib, handle: len(
            lib.nvmlDeviceGetRetiredPages(handle, getattr(lib, f"NVML_PAGE_RETIREMENT_CAUSE_{cause}"))
        ),
    )


READERS: Final = (
    _one("DCGM_FI_DEV_SM_CLOCK", lambda lib, h: lib.nvmlDeviceGetClockInfo(h, lib.NVML_CLOCK_SM)),
    _one("DCGM_FI_DEV_MEM_CLOCK", lambda lib, h: lib.nvmlDeviceGetClockInfo(h, lib.NVML_CLOCK_MEM)),
    _one("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", lambda lib, h: lib.nvmlDeviceGetCurrentClocksEventReasons(h)),
    _one("DCGM_FI_DEV_GPU_TEMP", lambda lib, h: lib.nvmlDeviceGetTemperature(h, lib.NVML_TEMPERATURE_GPU)),
    _one("DCGM_FI_DEV_GPU_TEMP_LIMIT", lambda lib, h: lib.nvmlDeviceGetMarginTemperature(h)),
    _one("DCGM_FI_DEV_POWER_USAGE", lambda lib, h: lib.nvmlDeviceGetPowerUsage(h) / 1000),
    _one("DCGM_FI_DEV_POWER_MGMT_LIMIT", lambda lib, h: lib.nvmlDeviceGetPowerManagementLimit(h) / 1000),
    _one("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", lambda lib, h: lib.nvmlDeviceGetEnforcedPowerLimit(h) / 1000),
    _one("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", lambda lib, h: lib.nvmlDeviceGetTotalEnergyConsumption(h)),
    _one("DCGM_FI_DEV_PSTATE", lambda lib, h: lib.nvmlDeviceGetPerformanceState(h)),
    _one("DCGM_FI_DEV_FAN_SPEED", lambda lib, h: lib.nvmlDeviceGetFanSpeed(h)),
    _one("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", lambda lib, h: lib.nvmlDeviceGetPcieReplayCounter(h)),
    _one("DCGM_FI_DEV_PCIE_LINK_GEN", lambda lib, h: lib.nvmlDeviceGetCurrPcieLinkGeneration(h)),
    _one("DCGM_FI_DEV_PCIE_LINK_WIDTH", lambda lib, h: lib.nvmlDeviceGetCurrPcieLinkWidth(h)),
    _one("DCGM_FI_DEV_PCIE_MAX_LINK_GEN", lambda lib, h: lib.nvmlDeviceGetMaxPcieLinkGeneration(h)),
    _one("DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", lambda lib, h: lib.nvmlDeviceGetMaxPcieLinkWidth(h)),
    Reader("utilization", _utilization),
    _one("DCGM_FI_DEV_ENC_UTIL", lambda lib, h: lib.nvmlDeviceGetEncoderUtilization(h)[0]),
    _one("DCGM_FI_DEV_DEC_UTIL", lambda lib, h: lib.nvmlDeviceGetDecoderUtilization(h)[0]),
    Reader("memory", _memory),
    _violation("DCGM_FI_DEV_POWER_VIOLATION", "POWER"),
    _violation("DCGM_FI_DEV_THERMAL_VIOLATION", "THERMAL"),
    _violation("DCGM_FI_DEV_SYNC_BOOST_VIOLATION", "SYNC_BOOST"),
    _violation("DCGM_FI_DEV_BOARD_LIMIT_VIOLATION", "BOARD_LIMIT"),
    _violation("DCGM_FI_DEV_LOW_UTIL_VIOLATION", "LOW_UTILIZATION"),
    _violation("DCGM_FI_DEV_RELIABILITY_VIOLATION", "RELIABILITY"),
    _ecc("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "CORRECTED", "VOLATILE"),
    _ecc("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "UNCORRECTED", "VOLATILE"),
    _ecc("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "CORRECTED", "AGGREGATE"),
    _ecc("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "UNCORRECTED", "AGGREGATE"),
    _retired("DCGM_FI_DEV_RETIRED_SBE", "MULTIPLE_SINGLE_BIT_ECC_ERRORS"),
    _retired("DCGM_FI_DEV_RETIRED_DBE", "DOUBLE_BIT_ECC_ERROR"),
    _one("DCGM_FI_DEV_RETIRED_PENDING", lambda lib, h: lib.nvmlDeviceGetRetiredPagesPendingStatus(h)),
    Reader("rows", _rows),
)
"""Calls made at every reading."""

PCIE_READERS: Final = (
    _one(
        "DCGM_FI_PROF_PCIE_TX_BYTES",
        lambda lib, h: lib.nvmlDeviceGetPcieThroughput(h, lib.NVML_PCIE_UTIL_TX_BYTES) * 1000,
    ),
    _one(
        "DCGM_FI_PROF_PCIE_RX_BYTES",
        lambda lib, h: lib.nvmlDeviceGetPcieThroughput(h, lib.NVML_PCIE_UTIL_RX_BYTES) * 1000,
    ),
)
"""Each takes 20 ms of waiting in the driver: only where asked for, and where GPM does not tell."""

FIELD_VALUES: Final = (
    ("DCGM_FI_DEV_MEMORY_TEMP", "NVML_FI_DEV_MEMORY_TEMP", 1.0),
    ("DCGM_FI_DEV_POWER_USAGE_INSTANT", "NVML_FI_DEV_POWER_INSTANT", 1e-3),
    ("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", 1.0),
    ("DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", 1.0),
    ("DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", 1.0),
    ("DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", 1.0),
    ("DCGM_FI_DEV_GPU_RECOVERY_ACTION", "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 1.0),
)
"""(metric, field, factor): read with one call for all of them."""

GPM_METRICS: Final = (
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "NVML_GPM_METRIC_GRAPHICS_UTIL", 0.01),
    ("DCGM_FI_PROF_SM_ACTIVE", "NVML_GPM_METRIC_SM_UTIL", 0.01),
    ("DCGM_FI_PROF_SM_OCCUPANCY", "NVML_GPM_METRIC_SM_OCCUPANCY", 0.01),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "NVML_GPM_METRIC_ANY_TENSOR_UTIL", 0.01),
    ("DCGM_FI_PROF_DRAM_ACTIVE", "NVML_GPM_METRIC_DRAM_BW_UTIL", 0.01),
    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE", "NVML_GPM_METRIC_FP64_UTIL", 0.01),
    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE", "NVML_GPM_METRIC_FP32_UTIL", 0.01),
    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE", "NVML_GPM_METRIC_FP16_UTIL", 0.01),
    ("DCGM_FI_PROF_PCIE_TX_BYTES", "NVML_GPM_METRIC_PCIE_TX_PER_SEC", float(MIB)),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", "NVML_GPM_METRIC_PCIE_RX_PER_SEC", float(MIB)),
    ("DCGM_FI_PROF_NVLINK_TX_BYTES", "NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC", float(MIB)),
    ("DCGM_FI_PROF_NVLINK_RX_BYTES", "NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC", float(MIB)),
)
"""(metric, GPM metric, factor): Hopper and newer; between two samples, so from the second reading on."""
