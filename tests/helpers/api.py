"""A known little fleet in a real store, and the API on it without a server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask

from api.app import create_app
from api.settings import Settings
from clickhouse import insert
from clickhouse.client import StoreAddress, StorePool, connect
from clickhouse.rollup import Rollup
from telemetry.batch import Device

METRICS = ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE")
SECONDS = 120


@dataclass
class Fleet:
    """Two hosts of two GPUs with three metrics at 1 Hz for two minutes, and some odd ones out."""

    url: str
    end_ms: int = field(default_factory=lambda: int(time.time()) * 1000)
    devices: list[Device] = field(default_factory=list)
    rows: int = 0

    @property
    def start_ms(self) -> int:
        return self.end_ms - (SECONDS - 1) * 1000

    def fill(self) -> Fleet:
        """Insert everything. Values are the second within the two minutes, so that any answer can be checked."""
        self.devices = [
            Device(
                uuid=f"GPU-{host}{index}",
                hostname=f"host-{host}",
                gpu_index=str(index),
                device=f"nvidia{index}",
                model="NVIDIA H100 80GB HBM3" if host == "a" else "NVIDIA A100-SXM4-40GB",
                pod=f"train-{index}" if host == "a" else "",
                namespace="ml" if host == "a" else "",
                labels=(("DCGM_FI_DRIVER_VERSION", "535.1" if host == "a" else "550.2"),),
            )
            for host in "ab"
            for index in range(2)
        ]
        with connect(self.url) as conn:
            seconds = np.arange(SECONDS)
            for device in self.devices:
                for metric in METRICS:
                    self._insert(conn, device, metric, self.start_ms + seconds * 1000, seconds.astype(float))
            # A GPU without a uuid, in thirds of a second and stored twice: ties of every kind.
            odd = Device(hostname="host-b", gpu_index="7", device="nvidia7", model="NVIDIA L4")
            self.devices.append(odd)
            for _ in range(2):
                self._insert(
                    conn, odd, METRICS[0], self.start_ms + np.array([0, 333, 333, 666]), np.array([1.0, 2, 2, 3])
                )
            # XIDs: none, 79 that stays, then 31.
            codes = np.array([0.0, 0, 79, 79, 79, 31, 31])
            self._insert(
                conn, self.devices[0], "DCGM_FI_DEV_XID_ERRORS", self.start_ms + np.arange(len(codes)) * 1000, codes
            )
            # One spike that an average hides.
            spike = np.ones(3600)
            spike[1800] = 1000.0
            self._insert(
                conn, self.devices[3], "DCGM_FI_DEV_SM_CLOCK", self.end_ms - 7_200_000 + np.arange(3600) * 1000, spike
            )
            Rollup(conn).look()
        return self

    def _insert(self, conn: Any, device: Device, metric: str, ts_ms: np.ndarray, values: np.ndarray) -> None:
        insert.insert_devices(conn, [device])
        n = len(values)
        self.rows += n
        whole = insert.SampleColumns(
            gpu=np.full(n, device.gpu_key, np.uint64),
            labels=np.full(n, device.labels_key, np.uint64),
            metric_code=np.zeros(n, np.uint16),
            metric_names=[metric],
            ts_ms=ts_ms.astype(np.int64),
            value=values,
            session=np.full(n, 7, np.uint64),
            seq=np.full(n, self.rows, np.uint64),
        )
        for day, part in whole.by_day():
            insert.insert_samples(conn, part, token=f"fleet-{self.rows}-{day}")


def pool(url: str) -> StorePool:
    return StorePool(StoreAddress(url=url))


def app_on(store: Any, broker: Any = None, state_dir: Path | None = None, **settings: Any) -> Flask:
    """The application with caches off, so that every answer is a fresh one."""
    defaults: dict[str, Any] = {"cache_seconds": 0.0, "alert_seconds": 0.0, "state_dir": state_dir}
    return create_app(Settings(**{**defaults, **settings}), store, broker, start_monitor=False)
