"""Plausible rows of a DCGM fleet at 1 Hz, as deliveries: the ten metrics of a real export, jobs that come and go.

Half of the GPUs are idle and as good as constant, but for the power's last digits; the others run jobs of some minutes
with noise on everything. Power has three decimals, as in the real file, and is what costs most to store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from clickhouse.insert import SampleColumns
from telemetry.batch import Device

METRICS: Final = (
    "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL", "DCGM_FI_DEV_ENC_UTIL", "DCGM_FI_DEV_DEC_UTIL",
    "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED",
)  # fmt: skip
BATCH_ROWS: Final = 1_000
MEMORY_MIB: Final = 81_559


class Fleet:
    """``gpus`` GPUs, eight a host; one agent a host sends batches of :data:`BATCH_ROWS` rows."""

    def __init__(self, gpus: int, start_ms: int, seed: int = 7) -> None:
        self.devices = [
            Device(uuid=f"GPU-{n:08x}-86f3-7a43-b711-4771313afc50", hostname=f"host-{n // 8:04d}",
                   gpu_index=str(n % 8), device=f"nvidia{n % 8}", model="NVIDIA H100 80GB HBM3")
            for n in range(gpus)
        ]  # fmt: skip
        self._gpu = np.array([device.gpu_key for device in self.devices], dtype=np.uint64)
        self._labels = np.array([device.labels_key for device in self.devices], dtype=np.uint64)
        self._rng = np.random.default_rng(seed)
        self._session = self._rng.integers(1, 2**63, gpus // 8 + 1).astype(np.uint64)
        self._gpus = gpus
        self._start_ms = start_ms
        self._second = 0
        self._busy = self._rng.random(gpus) < 0.5
        self._load = self._rng.integers(60, 100, gpus).astype(float)
        self._temperature = np.where(self._busy, 60.0, 30.0)
        self._used = np.where(self._busy, self._rng.integers(20_000, 80_000, gpus), 7).astype(float)

    def deliveries(self, rows: int, delivery_rows: int = 250_000) -> Iterator[SampleColumns]:
        """``rows`` rows in deliveries, in the order in which a log would have them: agent by agent, batch by batch."""
        a_second = self._gpus * len(METRICS)
        seconds = max(1, delivery_rows // a_second)
        for _ in range(-(-rows // (seconds * a_second))):
            yield self._delivery(seconds)

    def _delivery(self, seconds: int) -> SampleColumns:
        values = np.stack([self._scrape() for _ in range(seconds)])  # second, gpu, metric
        # Agent by agent: (gpu's host, second, gpu, metric).
        gpu = np.arange(self._gpus)
        order = np.lexsort(
            (np.tile(gpu, seconds), np.repeat(np.arange(seconds), self._gpus), np.tile(gpu // 8, seconds))
        )
        second, device = np.repeat(np.arange(seconds), self._gpus)[order], np.tile(gpu, seconds)[order]
        rows = len(order) * len(METRICS)
        device = np.repeat(device, len(METRICS))
        offset = np.repeat(self._second - seconds + second, len(METRICS))
        return SampleColumns(
            gpu=self._gpu[device],
            labels=self._labels[device],
            metric_code=np.tile(np.arange(len(METRICS), dtype=np.uint8), len(order)),
            metric_names=METRICS,
            # Agents scrape at their own moment of the second.
            ts_ms=self._start_ms + offset * 1000 + device // 8 * 37 % 1000,
            value=values.reshape(-1, len(METRICS))[order].reshape(rows),
            session=self._session[device // 8],
            seq=(offset * 8 * len(METRICS) // BATCH_ROWS + 1).astype(np.uint64),
        )

    def _scrape(self) -> np.ndarray:
        rng, gpus = self._rng, self._gpus
        changes = rng.random(gpus) < 1 / 900
        self._busy ^= changes
        self._used[changes] = np.where(self._busy[changes], rng.integers(20_000, 80_000, changes.sum()), 7)
        busy = self._busy
        self._load += rng.integers(-2, 3, gpus) * (rng.random(gpus) < 0.3)
        np.clip(self._load, 40, 100, out=self._load)
        util = np.where(busy, np.round(self._load), 0.0)
        target = np.where(busy, 45 + util * 0.3, 30.0)
        self._temperature += (target - self._temperature) * 0.05 + rng.normal(0, 0.15, gpus)
        power = np.where(busy, 200 + util * 4.5 + rng.normal(0, 12, gpus), 70 + rng.normal(0, 0.4, gpus))
        self._second += 1
        zeros = np.zeros(gpus)
        return np.stack(
            [
                np.where(busy, 1980.0 - 15 * (util > 97), 345.0),
                np.full(gpus, 2619.0),
                np.round(self._temperature),
                np.round(power, 3),
                util,
                np.where(busy, np.round(util * 0.4 + rng.integers(-2, 3, gpus)), 0.0),
                zeros,
                zeros,
                MEMORY_MIB - self._used,
                self._used,
            ],
            axis=1,
        )
