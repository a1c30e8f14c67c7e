"""storage: bytes a row in samples after merges, and how long the usual questions take, at 10 M and at 100 M rows.

Rows are those of a plausible fleet at 1 Hz (fleet_rows.py), inserted as collectors do, merged by OPTIMIZE. Each
question is asked ``runs`` x 5 times over HTTP, warm; the median counts.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from typing import Final

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import MS_A_DAY, insert_devices, insert_samples
from clickhouse.rollup import Rollup
from loadtest.bench.fleet_rows import METRICS, Fleet
from loadtest.bench.frame import Figure, Settings
from loadtest.bench.processes import Program, free_port, programs

SIZES: Final = {"10m": 10_000_000, "100m": 100_000_000}
GPUS: Final = 1_000


def run(settings: Settings) -> Iterator[Figure]:
    """Figures for each size."""
    for name, rows in SIZES.items():
        yield from _size(settings, name, settings.scaled(rows, 100_000))


def _size(settings: Settings, name: str, rows: int) -> Iterator[Figure]:
    directory = settings.directory / "storage"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    seconds = rows // (GPUS * len(METRICS))
    with programs() as started:
        port = free_port()
        arguments = ["serve", "--migrate", "--data-dir", str(directory / "store")]
        started.append(Program("store", "clickhouse.cli", arguments, directory, port))
        started[-1].wait_ready()
        with StoreConnection(StoreAddress(url=f"http://127.0.0.1:{port}", timeout_s=3600)) as conn:
            end_ms = time.time_ns() // 1_000_000 // 60_000 * 60_000
            fleet = Fleet(GPUS, end_ms - seconds * 1000)
            insert_devices(conn, fleet.devices)
            stored = _fill(conn, fleet, rows)
            begun = time.perf_counter()
            rolled = Rollup(conn, clock=lambda: end_ms / 1000 + 120).look()
            rollup_s = time.perf_counter() - begun
            conn.command("OPTIMIZE TABLE telemetry.samples FINAL", settings={"max_execution_time": 3600})
            size = conn.scalar("SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'samples'")
            yield Figure(
                "storage",
                "bytes_per_row" if name == "10m" else f"bytes_per_row_{name}",
                round(size / stored, 4),
                "bytes",
            )
            yield Figure("storage", f"rollup_rows_per_s_{name}", round(rolled.raw_rows / rollup_s), "rows/s")
            settings.notes[f"columns_{name}"] = {
                column: round(value / stored, 4)
                for column, value in conn.query(
                    "SELECT column, sum(column_data_compressed_bytes) FROM system.parts_columns "
                    "WHERE active AND table = 'samples' GROUP BY column ORDER BY column"
                )
            }
            for question, sql in _questions(fleet, end_ms).items():
                yield Figure("storage", f"{question}_{name}_ms", _median_ms(conn, sql, settings.runs * 5), "ms")
    shutil.rmtree(directory, ignore_errors=True)


def _fill(conn: StoreConnection, fleet: Fleet, rows: int) -> int:
    stored = 0
    for number, columns in enumerate(fleet.deliveries(rows)):
        for day, part in columns.by_day():
            insert_samples(conn, part, token=f"storage/{number}/{day}")
        stored += columns.rows
    return stored


def _questions(fleet: Fleet, end_ms: int) -> dict[str, str]:
    gpu = fleet.devices[123].gpu_key
    metric = "DCGM_FI_DEV_POWER_USAGE"
    end = f"toDateTime64({end_ms // 1000}, 3, 'UTC')"
    day = f"toDate({(end_ms - 1) // MS_A_DAY})"
    return {
        "latest_of_gpu": "SELECT metric, max(ts), argMax(value, ts) FROM telemetry.samples "
        f"WHERE gpu = {gpu} GROUP BY metric",
        "page_of_gpu": f"SELECT ts, metric, value FROM telemetry.samples WHERE gpu = {gpu} "
        f"AND ts >= {end} - INTERVAL 15 MINUTE ORDER BY ts, metric LIMIT 100",
        "series_of_gpu": f"SELECT toStartOfInterval(ts, INTERVAL 10 SECOND) AS t, avg(value), min(value), max(value) "
        f"FROM telemetry.samples WHERE gpu = {gpu} AND metric = '{metric}' GROUP BY t ORDER BY t",
        "fleet_latest": f"SELECT gpu, argMax(value, ts) FROM telemetry.samples WHERE metric = '{metric}' "
        f"AND ts >= {end} - INTERVAL 1 MINUTE GROUP BY gpu",
        "fleet_minutes": "SELECT bucket, sum(total) / sum(count), max(high) FROM telemetry.samples_1m "
        f"WHERE metric = '{metric}' GROUP BY bucket ORDER BY bucket",
        "fleet_raw_minutes": "SELECT toStartOfMinute(ts) AS m, avg(value), max(value) FROM telemetry.samples "
        f"WHERE metric = '{metric}' AND toDate(ts) = {day} GROUP BY m ORDER BY m",
        "count_all": "SELECT count() FROM telemetry.samples",
    }


def _median_ms(conn: StoreConnection, sql: str, times: int) -> float:
    conn.query(sql)
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        conn.query(sql)
        seconds.append(time.perf_counter() - begun)
    return float(f"{statistics.median(seconds) * 1000:.4g}")
