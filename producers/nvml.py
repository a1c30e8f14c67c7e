"""``telemetry-streamer nvml``: this host's GPUs, read through NVIDIA's management library.

The library is loaded when the command starts and not before: everything here imports without it. What a device does
not have is asked once and then left alone for ten minutes. XIDs come from NVML's events, each at once and as the sticky
gauge that DCGM makes of them.
"""

from __future__ import annotations

import argparse
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from producers.columns import Columns
from producers.identities import Identities
from producers.labels import make_device
from producers.live import run_live
from producers.nvml_fields import FIELD_VALUES, GPM_METRICS, PCIE_READERS, READERS, Reader
from telemetry.options import UsageError
from telemetry.service import Service

ASK_AGAIN_S: Final = 600.0
EVENT_WAIT_MS: Final = 500


@dataclass(slots=True)
class Gpu:
    """One GPU of this host."""

    handle: Any
    uuid: str
    code: int
    up: bool = True
    xid: int = 0
    lacking: dict[str, float] = field(default_factory=dict)
    """Readers that this device has nothing for, and when to ask again."""
    samples: list[Any] = field(default_factory=list)
    """Two GPM samples, swapped at each reading; empty where the device has no GPM."""
    sampled: bool = False


class NvmlSource:
    """A live source over ``lib``, the nvidia-ml-py module (or one with its functions)."""

    def __init__(
        self,
        lib: Any,
        identities: Identities,
        *,
        interval_s: float,
        log: logging.Logger,
        hostname: str = "",
        pcie: bool = False,
        labels: Iterable[tuple[str, str]] = (),
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises :class:`UsageError` where there is no library, no driver or no GPU."""
        self._lib = lib
        self._identities = identities
        self._interval_s = interval_s
        self._log = log
        self._clock = clock
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._readers: tuple[Reader, ...] = READERS + (PCIE_READERS if pcie else ())
        self._fields = [
            (metric, getattr(lib, name), factor) for metric, name, factor in FIELD_VALUES if hasattr(lib, name)
        ]
        self._gpm = [(metric, getattr(lib, name), factor) for metric, name, factor in GPM_METRICS if hasattr(lib, name)]
        try:
            lib.nvmlInit()
            count = lib.nvmlDeviceGetCount()
            driver = _text(lib.nvmlSystemGetDriverVersion())
            self.gpus = [
                self._open(index, hostname or socket.gethostname(), driver, tuple(labels)) for index in range(count)
            ]
        except lib.NVMLError as e:
            raise UsageError(
                f"nvml: {e}: is this a host with an NVIDIA driver? dcgm or csv read GPUs of others"
            ) from None
        if not self.gpus:
            raise UsageError("nvml: this host has no GPU")
        self._due = clock()
        self._xids: queue.SimpleQueue[tuple[int, str, int]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch_events, name="nvml-events", daemon=True)
        self._watcher.start()

    @property
    def up(self) -> int:
        """GPUs that answered at the last reading."""
        return sum(gpu.up for gpu in self.gpus)

    def collect(self, wait_s: float) -> list[Columns]:
        """Rows of a reading if one is due within ``wait_s``, and of XIDs that have come."""
        delay = self._due - self._clock()
        if delay > wait_s:
            self._sleep(wait_s)
            return self._events()
        if delay > 0:
            self._sleep(delay)
        late = max(0, int((self._clock() - self._due) / self._interval_s))
        self._due += (late + 1) * self._interval_s
        return [*self._events(), *(rows for gpu in self.gpus if (rows := self._read(gpu)) is not None)]

    def close(self) -> None:
        """Stop listening for events and let the library go."""
        self._stopping.set()
        self._watcher.join(2 * EVENT_WAIT_MS / 1000)
        for gpu in self.gpus:
            for sample in gpu.samples:
                self._quietly(lambda sample=sample: self._lib.nvmlGpmSampleFree(sample))
        self._quietly(self._lib.nvmlShutdown)

    def _open(self, index: int, hostname: str, driver: str, labels: tuple[tuple[str, str], ...]) -> Gpu:
        lib = self._lib
        handle = lib.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(lib.nvmlDeviceGetUUID(handle))
        device = make_device(
            {
                "uuid": uuid,
                "hostname": hostname,
                "gpu_index": str(index),
                "device": f"nvidia{index}",
                "model": _text(lib.nvmlDeviceGetName(handle)),
            },
            [("DCGM_FI_DRIVER_VERSION", driver), *labels],
        )
        gpu = Gpu(handle, uuid, self._identities.device(device))
        try:
            if lib.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                gpu.samples = [lib.nvmlGpmSampleAlloc(), lib.nvmlGpmSampleAlloc()]
        except lib.NVMLError:
            pass
        return gpu

    def _read(self, gpu: Gpu) -> Columns | None:
        lib, now = self._lib, self._clock()
        values: dict[str, float] = {}
        gpu.up = True
        for reader in self._readers:
            if gpu.lacking.get(reader.name, 0.0) > now:
                continue
            try:
                values.update(reader.read(lib, gpu.handle))
            except lib.NVMLError as e:
                if self._is_gone(e):
                    self._lost(gpu, e)
                    break
                gpu.lacking[reader.name] = now + ASK_AGAIN_S
        if gpu.up:
            self._read_fields(gpu, values, now)
            self._read_gpm(gpu, values, now)
        # A GPU that fell off the bus has nothing to tell but the XID that said so.
        values["DCGM_FI_DEV_XID_ERRORS"] = gpu.xid
        return self._columns(gpu.code, values, self._clock_ns())

    def _read_fields(self, gpu: Gpu, values: dict[str, float], now: float) -> None:
        lib = self._lib
        wanted = [item for item in self._fields if gpu.lacking.get(item[0], 0.0) <= now]
        if not wanted:
            return
        try:
            found = lib.nvmlDeviceGetFieldValues(gpu.handle, [field_id for _, field_id, _ in wanted])
        except lib.NVMLError:
            gpu.lacking.update((metric, now + ASK_AGAIN_S) for metric, _, _ in wanted)
            return
        for (metric, _, factor), value in zip(wanted, found, strict=True):
            if value.nvmlReturn != lib.NVML_SUCCESS:
                gpu.lacking[metric] = now + ASK_AGAIN_S
                continue
            number = _field_number(lib, value)
            if number is not None:
                values[metric] = number * factor

    def _read_gpm(self, gpu: Gpu, values: dict[str, float], now: float) -> None:
        if not gpu.samples or gpu.lacking.get("gpm", 0.0) > now:
            return
        lib = self._lib
        try:
            gpu.samples.reverse()
            lib.nvmlGpmSampleGet(gpu.handle, gpu.samples[1])
            if not gpu.sampled:
                gpu.sampled = True
                return
            ask = lib.c_nvmlGpmMetricsGet_t()
            ask.version = lib.NVML_GPM_METRICS_GET_VERSION
            ask.numMetrics = len(self._gpm)
            ask.sample1, ask.sample2 = gpu.samples
            for i, (_, metric_id, _) in enumerate(self._gpm):
                ask.metrics[i].metricId = metric_id
            lib.nvmlGpmMetricsGet(ask)
        except lib.NVMLError:
            gpu.lacking["gpm"] = now + ASK_AGAIN_S
            return
        for i, (metric, _, factor) in enumerate(self._gpm):
            if ask.metrics[i].nvmlReturn == lib.NVML_SUCCESS:
                values[metric] = ask.metrics[i].value * factor

    def _columns(self, device: int, values: dict[str, float], time_ns: int) -> Columns:
        count = len(values)
        return Columns(
            np.full(count, device, dtype=np.int32),
            np.array([self._identities.metric(name) for name in values], dtype=np.int32),
            np.fromiter(values.values(), dtype=np.float64, count=count),
            np.full(count, time_ns, dtype=np.int64),
        )

    def _events(self) -> list[Columns]:
        found = []
        while not self._xids.empty():
            time_ns, uuid, xid = self._xids.get()
            for gpu in self.gpus:
                if gpu.uuid == uuid:
                    gpu.xid = xid
                    self._log.warning("XID error", extra={"uuid": uuid, "xid": xid})
                    found.append(self._columns(gpu.code, {"DCGM_FI_DEV_XID_ERRORS": xid}, time_ns))
        return found

    def _watch_events(self) -> None:
        lib = self._lib
        try:
            events = lib.nvmlEventSetCreate()
            for gpu in self.gpus:
                self._quietly(
                    lambda gpu=gpu: lib.nvmlDeviceRegisterEvents(gpu.handle, lib.nvmlEventTypeXidCriticalError, events)
                )
        except lib.NVMLError as e:
            self._log.warning("no XID events from this driver", extra={"reason": str(e)})
            return
        while not self._stopping.is_set():
            try:
                event = lib.nvmlEventSetWait_v2(events, EVENT_WAIT_MS)
                uuid = _text(lib.nvmlDeviceGetUUID(event.device))
                self._xids.put((self._clock_ns(), uuid, int(event.eventData)))
            except lib.NVMLError as e:
                if e.value != lib.NVML_ERROR_TIMEOUT:
                    self._stopping.wait(EVENT_WAIT_MS / 1000)
        self._quietly(lambda: lib.nvmlEventSetFree(events))

    def _is_gone(self, error: Any) -> bool:
        return error.value in (self._lib.NVML_ERROR_GPU_IS_LOST, self._lib.NVML_ERROR_RESET_REQUIRED)

    def _lost(self, gpu: Gpu, error: Any) -> None:
        gpu.up = False
        if gpu.lacking.get("lost", 0.0) <= self._clock():
            gpu.lacking["lost"] = self._clock() + ASK_AGAIN_S
            self._log.error("a GPU is lost", extra={"uuid": gpu.uuid, "reason": str(error)})

    def _quietly(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except self._lib.NVMLError:
            pass


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    import pynvml

    service = Service.from_args("telemetry-streamer", args)
    identities = Identities()
    source = NvmlSource(
        pynvml,
        identities,
        interval_s=args.interval or 1.0,
        log=service.log,
        hostname=args.hostname,
        pcie=args.pcie,
        labels=args.label,
    )
    return run_live(args, service, source, identities, name="nvml", targets=[gpu.uuid for gpu in source.gpus])


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _field_number(lib: Any, value: Any) -> float | None:
    """The number in a field value's union, by its type."""
    names = {
        lib.NVML_VALUE_TYPE_DOUBLE: "dVal",
        lib.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        lib.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        lib.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        lib.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        lib.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    }
    name = names.get(value.valueType)
    return None if name is None else float(getattr(value.value, name))
