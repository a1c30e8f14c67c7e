"""collector: a backlog of sealed ranges into ClickHouse, every row once, rollups looked at every second.

The broker is filled with 1,000-row batches first, then one collector process with its default two workers drains it.
The clock runs from the first delivery taken until the last one is acknowledged. Baseline: the same rows as prepared
Native blocks of a delivery's size, inserted over two connections into an empty store, nothing else running. Its rows
lie as they arrive; that the collector sorts them is part of what it does.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import SampleColumns, sample_block
from clickhouse.native import Keys
from clickhouse.schema import SAMPLE_COLUMNS
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, Role, free_port, programs, start_broker
from telemetry.batch import Device, DictionaryEncoder, encode
from zmqbroker.client import Producer

BASELINE: Final = "insert-only of prepared blocks, two connections"
ROWS: Final = 16_000_000
BATCH_ROWS: Final = 1_000
BLOCK_ROWS: Final = 250_000
GPUS: Final = 2_500
METRICS: Final = (
    "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_MEMORY_TEMP",
    "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL", "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
)  # fmt: skip
TIMEOUT_S: Final = 300.0


def run(settings: Settings) -> Iterator[Figure]:
    """One figure."""
    rows = settings.scaled(ROWS // BLOCK_ROWS, 2) * BLOCK_ROWS
    ours, theirs = [], []
    for _ in range(settings.runs):
        theirs.append(rows / insert_only_s(settings, rows))
        seconds, note = collect_s(settings, rows)
        ours.append(rows / seconds)
        settings.notes.setdefault("runs", []).append(note)
    yield compare("collector", "rows_per_s", "rows/s", ours, BASELINE, theirs)


def devices() -> list[Device]:
    return [
        Device(uuid=f"GPU-{n:08x}-86f3-7a43-b711-4771313afc50", hostname=f"host-{n // 8}", gpu_index=str(n % 8),
               device=f"nvidia{n % 8}", model="NVIDIA H100 80GB HBM3")
        for n in range(GPUS)
    ]  # fmt: skip


def columns(number: int, rows: int, start_ms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows ``number * rows`` and on of one long scrape, GPU by GPU: (timestamp ms, device, metric, value)."""
    row = np.arange(number * rows, (number + 1) * rows)
    second = row // (GPUS * len(METRICS))
    value = np.round(50 + 20 * np.sin(row * 0.37) + row % 7)
    return start_ms + second * 1000, row // len(METRICS) % GPUS, row % len(METRICS), value


def insert_only_s(settings: Settings, rows: int) -> float:
    """Seconds to insert prepared blocks of the same rows."""
    directory = settings.directory / "collector-baseline"
    with programs() as started:
        store, url = fresh_store(started, directory)
        store.wait_ready()
        inserter = Role(_insert_prepared, url, rows)
        try:
            inserter.ready(120)
            inserter.go()
            return float(inserter.result(TIMEOUT_S))
        finally:
            inserter.end()


def _insert_prepared(go: Callable[[], None], url: str, rows: int) -> float:
    keys = np.array([device.gpu_key for device in devices()], dtype=np.uint64)
    labels = np.array([device.labels_key for device in devices()], dtype=np.uint64)
    start_ms = _start_ms(rows)
    blocks = []
    for number in range(rows // BLOCK_ROWS):
        ts_ms, device, metric, value = columns(number, BLOCK_ROWS, start_ms)
        batch = np.arange(BLOCK_ROWS) // BATCH_ROWS
        batches = BLOCK_ROWS // BATCH_ROWS
        session = Keys(batch, np.full(batches, 7, dtype=np.uint64))
        seq = Keys(batch, np.arange(number * batches, (number + 1) * batches, dtype=np.uint64))
        gpu, label_set = Keys(device, keys), Keys(device, labels)
        blocks.append(sample_block(SampleColumns(gpu, label_set, metric, METRICS, ts_ms, value, session, seq)))
    connections = [StoreConnection(StoreAddress(url=url)) for _ in range(2)]

    def work(which: int) -> None:
        for number in range(which, len(blocks), 2):
            connections[which].insert("samples", blocks[number], SAMPLE_COLUMNS, token=f"bench-{number}")

    go()
    begun = time.perf_counter()
    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    (stored,) = connections[0].query("SELECT count() FROM telemetry.samples")[0]
    if stored != rows:
        raise RuntimeError(f"{stored} rows are stored, {rows} were inserted")
    return seconds


def collect_s(settings: Settings, rows: int) -> tuple[float, dict[str, Any]]:
    """Seconds that a collector takes for a backlog of ``rows``, and what each process used."""
    directory = settings.directory / "collector"
    with programs() as started:
        store, url = fresh_store(started, directory)
        broker, broker_url = start_broker(started, directory)
        store.wait_ready()
        broker.wait_ready()
        started.append(
            Program("rollup", "clickhouse.cli", ["rollup", "--url", url, "--interval", "1s"], directory, free_port())
        )
        started[-1].wait_ready()
        feeder = Role(fill, broker_url, rows)
        try:
            feeder.ready(120)
            feeder.go()
            feeder.result(TIMEOUT_S)
        finally:
            feeder.end()
        before = {program.name: program.cpu_seconds() for program in started}
        port = free_port()
        arguments = ["--connect", broker_url, "--clickhouse", url]
        collector = Program("collector", "consumers.cli", arguments, directory, port)
        started.append(collector)
        seconds, figures = drain(port, rows)
        cpu = {program.name: program.cpu_seconds() - before.get(program.name, 0.0) for program in started}
    shutil.rmtree(directory, ignore_errors=True)
    return seconds, {
        "seconds": round(seconds, 3),
        "inserts": figures["inserts"],
        "insert_seconds": figures["insert_seconds"],
        "step_seconds": figures["step_seconds"],
        "cpu_us_a_row": {name: round(1e6 * used / rows, 3) for name, used in cpu.items()},
    }


def fresh_store(started: list[Program], directory: Any) -> tuple[Program, str]:
    """A store on an empty directory, with its address; it may not be ready yet."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    port = free_port()
    arguments = ["serve", "--migrate", "--data-dir", str(directory / "store")]
    started.append(Program("store", "clickhouse.cli", arguments, directory, port))
    return started[-1], f"http://127.0.0.1:{port}"


def _start_ms(rows: int) -> int:
    """Timestamps that end before now, so that none lies in the future."""
    return time.time_ns() // 1_000_000 - (rows // (GPUS * len(METRICS)) + 10) * 1000


def fill(go: Callable[[], None], url: str, rows: int, batch_rows: int = BATCH_ROWS) -> None:
    """Publish ``rows`` in batches; returns once the broker has acknowledged all."""
    dictionary = DictionaryEncoder().encode(devices(), METRICS)
    start_ms = _start_ms(rows)
    go()
    with Producer(url) as producer:
        for number in range(rows // batch_rows):
            ts_ms, device, metric, value = columns(number, batch_rows, start_ms)

            def payload(session: int, seq: int, ts_ms=ts_ms, device=device, metric=metric, value=value) -> bytes:
                return encode(session, seq, ts_ms * 1_000_000, device, metric, value, dictionary, created_ns=0)

            producer.publish(payload, batch_rows)
        if not producer.flush(TIMEOUT_S):
            raise RuntimeError("the broker did not take the backlog in time")


def drain(port: int, rows: int) -> tuple[float, dict[str, Any]]:
    """Watch /stats from the first delivery taken until all are settled."""
    until = time.monotonic() + TIMEOUT_S
    begun = 0.0
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=5) as answer:
                figures: dict[str, Any] = json.load(answer)
        except OSError:
            time.sleep(0.02)
            continue
        now = time.monotonic()
        if not begun and figures["received_rows"]:
            begun = now
        if figures["stored_rows"] >= rows:
            return now - begun, figures
        time.sleep(0.02)
    raise RuntimeError(f"not every row was stored within {TIMEOUT_S} s: {figures}")
