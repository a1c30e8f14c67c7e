"""backlog: memory and disk of the broker with 1 M, 10 M and 100 M rows queued behind a consumer that never acks.

1,000-row DCGM batches with the default compression, as a streamer packs a fleet of 248 GPUs (metric by metric). The
consumer takes one range and holds it. Publishing speed is that of the last part of each step, so that a queue that
slows down as it grows shows.
"""

from __future__ import annotations

import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Role, programs, start_broker
from telemetry.batch import Device, DictionaryEncoder, encode
from zmqbroker.client import Consumer, Producer

STEPS: Final = (1_000_000, 10_000_000, 100_000_000)
ROWS: Final = 1000
DISTINCT: Final = 500
MEASURED: Final = 2_000
"""Batches over which the publishing speed of a step is taken, several times."""
NAMES: Final = {1_000_000: "1M", 10_000_000: "10M", 100_000_000: "100M"}


def run(settings: Settings) -> Iterator[Figure]:
    directory = settings.directory / "backlog"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    first: dict[str, float] = {}
    with programs() as started:
        broker, url = start_broker(started, directory, "--disk-max", "100GiB")
        broker.wait_ready()
        stalled = Role(hold, url)
        stalled.ready()
        stalled.go()
        try:
            payloads = batches(DISTINCT)
            producer = Producer(url, "backlog", buffer_bytes=16 << 20)
            queued = 0
            for step in STEPS:
                batches_wanted = settings.scaled(step, 2 * ROWS) // ROWS
                rates = fill(producer, payloads, queued, batches_wanted)
                queued = batches_wanted
                name = NAMES[step]
                figures = {
                    f"rss_mb_{name}": (psutil.Process(broker.popen.pid).memory_info().rss / 1e6, "MB"),
                    f"bytes_per_row_{name}": (used(directory / "broker") / (queued * ROWS), "B"),
                    f"publish_rows_per_s_{name}": (statistics.median(rates), "rows/s"),
                }
                for metric, (value, unit) in figures.items():
                    kind = metric.removesuffix(f"_{name}")
                    base = first.setdefault(kind, value)
                    yield compare("backlog", metric, unit, [value], "the same at 1M", [base])
            producer.close(30)
        finally:
            stalled.end()
    shutil.rmtree(directory, ignore_errors=True)


def fill(producer: Producer, payloads: list[bytes], begin: int, end: int) -> list[float]:
    """Publish batches ``begin`` to ``end``; rows a second of the last ten pieces."""
    rates: list[float] = []
    at = begin
    while at < end:
        piece = min(MEASURED, end - at) if end - at <= 10 * MEASURED else (end - at) - 10 * MEASURED
        started = time.perf_counter()
        for i in range(at, at + piece):
            producer.publish(payloads[i % len(payloads)], ROWS)
        producer.flush()
        rates.append(piece * ROWS / (time.perf_counter() - started))
        at += piece
    return rates[-10:]


def used(directory: Path) -> int:
    """Bytes that the files take on disk."""
    return sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())


def hold(go: Callable[[], None], url: str) -> None:
    """Take one range and keep it."""
    consumer = Consumer(url, "backlog", "stalled", credit=1, options={"max_processing_s": 86_400})
    go()
    held: list[Any] = []
    while True:
        delivery = consumer.receive(1)
        if delivery is not None:
            held.append(delivery)


def batches(count: int) -> list[bytes]:
    """Batches of a fleet of 31 hosts: rows run over GPUs within a metric, as dcgm-exporter's long CSV has them."""
    rng = np.random.default_rng(20250718)
    devices = [
        Device(
            uuid=f"GPU-{uuid.UUID(bytes=rng.bytes(16))}", hostname=f"dgx-{i // 8:03d}", gpu_index=str(i % 8),
            device=f"nvidia{i % 8}", model="NVIDIA H100 80GB HBM3",
            labels=(
                ("DCGM_FI_DRIVER_VERSION", "535.129.03"),
                ("instance", f"dgx-{i // 8:03d}:9400"),
                ("job", "dgx_dcgm_exporter"),
            ),
        )
        for i in range(248)
    ]  # fmt: skip
    metrics = [f"DCGM_FI_DEV_METRIC_{i}" for i in range(10)]
    dictionary = DictionaryEncoder().encode(devices, metrics)
    spread = np.array([100.0, 100.0, 80.0, 700.0, 1980.0, 2619.0, 81_000.0, 81_000.0, 40.0, 0.0])
    out = []
    for n in range(count):
        i = np.arange(n * ROWS, (n + 1) * ROWS)
        gpu, metric, second = i % 248, i // 248 % 10, i // 2480
        value = np.round(rng.random(ROWS) * spread[metric], np.where(n % 2, 0, 3).item())
        at = 1_752_871_354_000_000_000 + second * 1_000_000_000
        out.append(encode(1, n + 1, at, gpu, metric, value, dictionary, created_ns=int(at[-1])))
    return out
