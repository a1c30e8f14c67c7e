"""A simulated fleet as dcgm-exporter would show it: ``/metrics`` in its text format, in either label generation.

For trying out scraping, dashboards and alerts without a GPU, and for tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal
from wsgiref.types import StartResponse, WSGIEnvironment

import numpy as np

from producers.fleet import Fleet, FleetSpec
from telemetry.batch import Device
from telemetry.catalogue import CATALOGUE

Generation = Literal["classic", "4.9"]
CATCH_UP_TICKS_MAX = 60


class FleetExporter:
    """A WSGI application. The fleet goes on with time, whether it is asked or not."""

    def __init__(
        self, spec: FleetSpec, generation: Generation = "classic", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = Fleet(spec)
        self._spec = spec
        self._generation = generation
        self._clock = clock
        self._lock = threading.Lock()
        self._values = self._fleet.tick()
        self._due = clock() + spec.interval_s
        devices = self._fleet.devices()
        self._parts = [(self._head(name), [self._series(name, device) for device in devices]) for name in spec.metrics]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "/") not in ("/metrics", "/"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"the metrics are at /metrics\n"]
        body = self.text().encode()
        start_response("200 OK", [("Content-Type", "text/plain; version=0.0.4"), ("Content-Length", str(len(body)))])
        return [body]

    def text(self) -> str:
        """What /metrics answers now."""
        with self._lock:
            late = int((self._clock() - self._due) // self._spec.interval_s) + 1
            if late > 0:
                for _ in range(min(late, CATCH_UP_TICKS_MAX)):
                    self._values = self._fleet.tick()
                self._due += late * self._spec.interval_s
            values = self._values
        lines = []
        for i, (head, series) in enumerate(self._parts):
            lines.append(head)
            # A blank says that this GPU has no such value: the exporter leaves most of them out, and some slip through.
            row = self._in_generation(self._spec.metrics[i], values[i])
            lines += [f"{name} {value:.17g}" for name, value in zip(series, row.tolist(), strict=True)]
        return "\n".join(lines) + "\n"

    def _in_generation(self, name: str, values: np.ndarray) -> np.ndarray:
        metric = CATALOGUE[name]
        if self._generation == "classic" or not metric.unit_4_9:
            return values
        return np.where(values > 9e18, values, values / metric.factor_4_9)

    def _head(self, name: str) -> str:
        metric = CATALOGUE[name]
        unit = metric.unit_4_9 if self._generation == "4.9" and metric.unit_4_9 else metric.unit
        bare = unit in ("", "code", "enum", "bool", "count", "bitmask")
        text = f"{metric.help}." if bare else f"{metric.help} (in {unit})."
        return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}"

    def _series(self, name: str, device: Device) -> str:
        new = self._generation == "4.9"
        labels: dict[str, Any] = {
            "gpu": device.gpu_index,
            "UUID": device.uuid,
            "pci_bus_id": f"00000000:{16 + int(device.gpu_index):02X}:00.0",
            "device": device.device,
            "modelName": device.model,
            "hostname" if new else "Hostname": device.hostname,
            "DCGM_FI_SYSTEM_DRIVER_VERSION" if new else "DCGM_FI_DRIVER_VERSION": dict(device.labels)[
                "DCGM_FI_DRIVER_VERSION"
            ],
        }
        return name + "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"
