"""A recorded NVML below the Python binding: C functions as Python callables that fill what ctypes passes by reference.

Two GPUs of an H100 host. What the recording lacks answers NOT_SUPPORTED, as the real library does.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import pynvml

SUCCESS, NOT_SUPPORTED, TIMEOUT, LOST = 0, 3, 10, 15

SCALARS = {
    "nvmlDeviceGetPowerUsage": 412_345,
    "nvmlDeviceGetPowerManagementLimit": 700_000,
    "nvmlDeviceGetEnforcedPowerLimit": 650_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_123_456_789_012,
    "nvmlDeviceGetPerformanceState": 0,
    "nvmlDeviceGetPcieReplayCounter": 3,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
}
CLOCKS = {pynvml.NVML_CLOCK_SM: 1755, pynvml.NVML_CLOCK_MEM: 2619}
FIELDS = {pynvml.NVML_FI_DEV_MEMORY_TEMP: 61, pynvml.NVML_FI_DEV_POWER_INSTANT: 415_000}
GPM = {pynvml.NVML_GPM_METRIC_SM_UTIL: 83.5, pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: 2.0}


def _target(reference: Any) -> Any:
    return reference._obj if hasattr(reference, "_obj") else reference


class Library:
    """Stands where ``ctypes.CDLL("libnvidia-ml.so.1")`` would."""

    def __init__(self, gpus: int = 2) -> None:
        self.gpus = gpus
        self.lost: set[int] = set()
        self.xids: list[tuple[int, int]] = []
        self.calls: dict[str, int] = {}
        self._handles: dict[int, int] = {}
        self._arrived = threading.Condition()

    def raise_xid(self, gpu: int, xid: int) -> None:
        with self._arrived:
            self.xids.append((gpu, xid))
            self._arrived.notify()

    def __getattr__(self, name: str) -> Any:
        own = type(self).__dict__.get(f"_{name}")

        def call(*args: Any) -> int:
            self.calls[name] = self.calls.get(name, 0) + 1
            gpu = self._gpu(args[0]) if args and name.startswith("nvmlDeviceGet") else None
            if gpu in self.lost and name not in ("nvmlDeviceGetUUID",):
                return LOST
            if own is not None:
                return own(self, *args)
            if name in SCALARS:
                _target(args[-1]).value = SCALARS[name]
                return SUCCESS
            return NOT_SUPPORTED

        return call

    def _gpu(self, handle: Any) -> int | None:
        try:
            address = ctypes.cast(handle, ctypes.c_void_p).value
        except (ctypes.ArgumentError, TypeError):
            return None
        return None if address is None else address - 1000

    def _nvmlInitWithFlags(self, flags: Any) -> int:
        return SUCCESS

    _nvmlShutdown = lambda self: SUCCESS

    def _nvmlErrorString(self, code: Any) -> bytes:
        return b"recorded error"

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:
        _target(count).value = self.gpus
        return SUCCESS

    def _nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = b"550.144.03"
        return SUCCESS

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        number = getattr(index, "value", index)
        ctypes.memmove(ctypes.addressof(_target(handle)), ctypes.byref(ctypes.c_void_p(1000 + number)), 8)
        return SUCCESS

    def _nvmlDeviceGetUUID(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = b"GPU-recorded-%d" % (self._gpu(handle) or 0)
        return SUCCESS

    def _nvmlDeviceGetName(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = b"NVIDIA H100 80GB HBM3"
        return SUCCESS

    def _nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, value: Any) -> int:
        _target(value).value = CLOCKS[getattr(kind, "value", kind)]
        return SUCCESS

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, value: Any) -> int:
        _target(value).value = 54 + (self._gpu(handle) or 0)
        return SUCCESS

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        _target(rates).gpu, _target(rates).memory = 97, 41
        return SUCCESS

    def _nvmlDeviceGetEncoderUtilization(self, handle: Any, value: Any, period: Any) -> int:
        _target(value).value, _target(period).value = 7, 1000
        return SUCCESS

    def _nvmlDeviceGetMemoryInfo_v2(self, handle: Any, info: Any) -> int:
        memory, mib = _target(info), 1 << 20
        memory.total, memory.reserved, memory.used, memory.free = 81559 * mib, 559 * mib, 40500 * mib, 40500 * mib
        return SUCCESS

    def _nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: Any, counter: Any, value: Any) -> int:
        _target(value).value = 2 if getattr(kind, "value", kind) == 0 else 0
        return SUCCESS

    def _nvmlDeviceGetRemappedRows(self, handle: Any, *found: Any) -> int:
        for place, number in zip(found, (4, 1, 1, 0), strict=True):
            _target(place).value = number
        return SUCCESS

    def _nvmlDeviceGetViolationStatus(self, handle: Any, policy: Any, found: Any) -> int:
        _target(found).violationTime = 123_000_000
        return SUCCESS

    def _nvmlDeviceGetFieldValues(self, handle: Any, count: Any, values: Any) -> int:
        for value in _target(values):
            number = FIELDS.get(value.fieldId)
            value.nvmlReturn = NOT_SUPPORTED if number is None else SUCCESS
            if number is not None:
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
                value.value.uiVal = number
        return SUCCESS

    def _nvmlGpmQueryDeviceSupport(self, handle: Any, found: Any) -> int:
        _target(found).isSupportedDevice = 1
        return SUCCESS

    def _nvmlGpmSampleAlloc(self, sample: Any) -> int:
        return SUCCESS

    def _nvmlGpmSampleGet(self, handle: Any, sample: Any) -> int:
        return SUCCESS

    def _nvmlGpmMetricsGet(self, ask: Any) -> int:
        wanted = _target(ask)
        for i in range(wanted.numMetrics):
            number = GPM.get(wanted.metrics[i].metricId)
            wanted.metrics[i].nvmlReturn = NOT_SUPPORTED if number is None else SUCCESS
            wanted.metrics[i].value = number or 0.0
        return SUCCESS

    def _nvmlEventSetCreate(self, events: Any) -> int:
        return SUCCESS

    def _nvmlDeviceRegisterEvents(self, handle: Any, kinds: Any, events: Any) -> int:
        return SUCCESS

    def _nvmlEventSetFree(self, events: Any) -> int:
        return SUCCESS

    def _nvmlEventSetWait_v2(self, events: Any, data: Any, timeout_ms: Any) -> int:
        until = time.monotonic() + min(getattr(timeout_ms, "value", timeout_ms), 50) / 1000
        with self._arrived:
            while not self.xids:
                left = until - time.monotonic()
                if left <= 0:
                    return TIMEOUT
                self._arrived.wait(left)
            gpu, xid = self.xids.pop(0)
        event = _target(data)
        ctypes.memmove(ctypes.addressof(event), ctypes.byref(ctypes.c_void_p(1000 + gpu)), 8)
        event.eventData = xid
        return SUCCESS
