"""A small fleet as an operator would find it, behind the real API: store, broker, collector and API as processes.

The store is filled before the API starts: an hour of every metric, three days by the hour for trends, GPUs held by
pods, one that went silent a while ago (stale) and one long before (lost). :meth:`FleetStack.play` adds the present.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import SampleColumns, insert_devices, insert_samples
from producers.fleet import BLANK, DEFAULT_METRICS, Fleet, FleetSpec
from telemetry.batch import Device, DictionaryEncoder, encode
from tests.helpers.processes import RunningProcess
from tests.helpers.store import Store
from zmqbroker.client import Producer

TOPIC = "gpu-telemetry"
METRICS = (*DEFAULT_METRICS, "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")
STEP_S = 5.0
"""720 samples in the hour: more than a chart asks for at once, so that it is thinned until somebody zooms."""
STALE_FOR_S = 150
LOST_FOR_S = 2 * 3600


class PlayedFleet:
    """A simulated fleet whose GPUs are held by pods, and which can be asked for any number of ticks."""

    def __init__(self, hosts: int, gpus_per_host: int = 8, metrics: tuple[str, ...] = METRICS) -> None:
        self.fleet = Fleet(FleetSpec(hosts, gpus_per_host, metrics, seed=7, interval_s=STEP_S))
        self.metrics = metrics
        self.devices = [self._held(device, i, gpus_per_host) for i, device in enumerate(self.fleet.devices())]
        self.gpu = np.array([device.gpu_key for device in self.devices], dtype=np.uint64)
        self.labels = np.array([device.labels_key for device in self.devices], dtype=np.uint64)

    @staticmethod
    def _held(device: Device, number: int, gpus_per_host: int) -> Device:
        host = number // gpus_per_host
        if host % 4 == 3:
            return device._replace(job="")
        return device._replace(pod=f"train-{host:04d}-{number % gpus_per_host}", namespace="research", job="")

    def tick(self, ts_ms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(device code, metric code, time in ms, value) of one tick, blanks left out."""
        values = self.fleet.tick()
        metric, device = np.indices(values.shape)
        good = (values != BLANK).ravel()
        device, metric, flat = device.ravel()[good], metric.ravel()[good], values.ravel()[good]
        return device, metric, np.full(len(flat), ts_ms, dtype=np.int64), flat

    def columns(self, times_ms: np.ndarray) -> SampleColumns:
        """A tick for each of these times, as rows of the store."""
        device, metric, ts, value = (np.concatenate(parts) for parts in zip(*map(self.tick, times_ms.tolist())))
        rows = len(value)
        return SampleColumns(
            gpu=self.gpu[device],
            labels=self.labels[device],
            metric_code=metric.astype(np.uint16),
            metric_names=list(self.metrics),
            ts_ms=ts,
            value=value,
            session=np.full(rows, 1, dtype=np.uint64),
            seq=np.arange(rows, dtype=np.uint64) // 10_000,
        )


def keep(columns: SampleColumns, mask: np.ndarray) -> SampleColumns:
    """Only these rows."""
    names = columns.metric_names
    return SampleColumns(*(part if part is names else part[mask] for part in columns))


def insert(conn: StoreConnection, columns: SampleColumns) -> None:
    """Into ``samples``, a day an INSERT."""
    for day, part in columns.by_day():
        insert_samples(conn, part, token=f"{secrets.token_hex(8)}/{day}")


def fill(conn: StoreConnection, played: PlayedFleet, now_ms: int) -> None:
    """The fleet's past: days by the hour, then an hour in steps, with two GPUs that fell silent."""
    days = np.arange(now_ms - 3 * 86_400_000, now_ms - 3_600_000, 3_600_000, dtype=np.int64)
    hour = np.arange(now_ms - 3_600_000, now_ms, int(STEP_S * 1000), dtype=np.int64)
    columns = played.columns(np.concatenate([days, hour]))
    silent = np.zeros(columns.rows, dtype=bool)
    for gpu, seconds in ((played.gpu[-1], LOST_FOR_S), (played.gpu[-2], STALE_FOR_S)):
        silent |= (columns.gpu == gpu) & (columns.ts_ms > now_ms - seconds * 1000)
    insert_devices(conn, played.devices)
    insert(conn, keep(columns, ~silent))


class FleetStack:
    """The processes, and the fleet behind them. ``url`` is the dashboard's address, without the last slash."""

    def __init__(self, directory: Path, hosts: int = 6) -> None:
        self.directory = directory
        self.played = PlayedFleet(hosts)
        self.store = Store(directory / "store", "--memory", "1GB")
        self.processes: list[RunningProcess] = []
        self.broker_url = ""
        self.url = ""
        self._producer: Producer | None = None
        self._dictionaries = DictionaryEncoder()

    @property
    def reporting(self) -> list[Device]:
        """The GPUs that still report."""
        return self.played.devices[:-2]

    def start(self) -> FleetStack:
        self.store.start()
        with self.store.connect() as conn:
            fill(conn, self.played, time.time_ns() // 1_000_000)
        # From here on a tick is a second, so that counters go on at the same pace.
        self.played.fleet.spec = replace(self.played.fleet.spec, interval_s=1.0)
        broker = self.run("zmqbroker.cli", "serve", "--data-dir", str(self.directory / "broker"), "--bind", "tcp://127.0.0.1:0",
                          "--admin-bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0")  # fmt: skip
        self.broker_url = broker.wait_for_line("broker listening")["addresses"][0]
        broker_http = broker.http()
        self.run("consumers.cli", "--connect", self.broker_url, "--clickhouse", self.store.url, "--http", "127.0.0.1:0")
        self.url = self.start_api("--connect", self.broker_url, "--broker-http", broker_http, "--alert-interval", "2s")
        return self

    def run(self, module: str, *args: str, name: str = "") -> RunningProcess:
        process = RunningProcess(
            module, args, self.directory / "logs", name=name or f"{module.partition('.')[0]}-{len(self.processes)}"
        )
        self.processes.append(process)
        return process

    def start_api(self, *args: str) -> str:
        """One more API on the same store; its address."""
        process = self.run("api.cli", "serve", "--http", "127.0.0.1:0", "--clickhouse", self.store.url, *args)
        return process.wait_ready()

    def large_fleet(self, hosts: int, *, day_of_hottest: float = 0.0) -> str:
        """An API on a database of its own with ``hosts`` x 8 GPUs that report now; its address.

        ``day_of_hottest``: its first GPU has 86,400 temperatures behind it, and in the middle one second this hot (C).
        """
        metrics = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE")
        played = PlayedFleet(hosts, metrics=metrics)
        migrated = self.run("clickhouse.cli", "migrate", "--url", self.store.url, "--database", "large")
        assert migrated.popen.wait(60) == 0, migrated.log_path.read_text()
        now_ms = time.time_ns() // 1_000_000
        with StoreConnection(StoreAddress(url=self.store.url, database="large")) as conn:
            insert_devices(conn, played.devices)
            insert(conn, played.columns(np.array([now_ms], dtype=np.int64)))
            if day_of_hottest:
                rows = 86_400
                value = 50 + 30 * np.sin(np.arange(rows) / 5000)
                value[rows // 2] = day_of_hottest
                insert(conn, SampleColumns(
                    gpu=np.full(rows, played.gpu[0]), labels=np.full(rows, played.labels[0]), metric_code=np.ones(rows, np.uint16),
                    metric_names=list(metrics), ts_ms=now_ms - (rows - np.arange(rows, dtype=np.int64)) * 1000, value=value,
                    session=np.full(rows, 2, np.uint64), seq=np.arange(rows, dtype=np.uint64) // 10_000,
                ))  # fmt: skip
        return self.start_api("--database", "large", "--broker-http", "http://127.0.0.1:9", "--alert-interval", "0")

    def play(self) -> None:
        """One tick of the present, through the broker; returns when it is durable there."""
        if self._producer is None:
            self._producer = Producer(self.broker_url, TOPIC, name="tests")
        device, metric, ts_ms, value = self.played.tick(time.time_ns() // 1_000_000)
        mask = device < len(self.reporting)
        dictionary = self._dictionaries.encode(self.played.devices, self.played.metrics, key="fleet")

        def batch(session: int, seq: int) -> bytes:
            return encode(
                session,
                seq,
                ts_ms[mask] * 1_000_000,
                device[mask],
                metric[mask],
                value[mask],
                dictionary,
                created_ns=time.time_ns(),
            )

        receipt = self._producer.publish(batch, int(mask.sum()), timeout=60)
        assert receipt.wait(60), "the broker did not confirm"

    def stop(self) -> None:
        if self._producer is not None:
            self._producer.close(1.0)
        for process in reversed(self.processes):
            process.kill()
        if self.store.process is not None:
            self.store.process.kill()


@contextmanager
def fleet_stack(directory: Path, hosts: int = 6) -> Iterator[FleetStack]:
    """A running stack; everything is killed at the end."""
    stack = FleetStack(directory, hosts)
    try:
        yield stack.start()
    finally:
        stack.stop()
