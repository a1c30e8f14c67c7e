"""designs: schemas for samples side by side, on the same plausible rows: bytes a row, insert rate, question times.

    narrow        one row a value by (gpu, metric, ts): the design in use
    metric_first  the same by (metric, gpu, ts)
    time_first    the same by (ts, gpu, metric)
    wide          one row a GPU and second, a column a metric; counted as the values it holds

Codecs of the value column are compared on a tenth of the GPUs of the narrow one. Times are CPU time of the server's
threads, which a machine that others use as well leaves nearly as it is. The figures behind
docs/adr/0010-samples-table.md.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from clickhouse import native
from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import SampleColumns, sample_block
from clickhouse.native import Column
from clickhouse.schema import SAMPLE_COLUMNS
from loadtest.bench.fleet_rows import METRICS, Fleet
from loadtest.bench.frame import Figure, Settings
from loadtest.bench.processes import Program, free_port, programs

ROWS: Final = 100_000_000
GPUS: Final = 1_000
CODEC_SHARE: Final = 10
METRIC: Final = "DCGM_FI_DEV_POWER_USAGE"

NARROW: Final = """gpu UInt64 CODEC(ZSTD(1)), metric LowCardinality(String),
ts DateTime64(3, 'UTC') CODEC({time}, ZSTD(1)), value Float64 CODEC({value}),
labels UInt64 CODEC(ZSTD(1)), _session UInt64 CODEC(Delta, ZSTD(1)), _seq UInt64 CODEC(Delta, ZSTD(1))"""
WIDE: Final = """gpu UInt64 CODEC(ZSTD(1)), ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)), {metrics},
labels UInt64 CODEC(ZSTD(1)), _session UInt64 CODEC(Delta, ZSTD(1)), _seq UInt64 CODEC(Delta, ZSTD(1))"""
ORDERS: Final = {
    "narrow": ("gpu, metric, ts", "DoubleDelta"),
    "metric_first": ("metric, gpu, ts", "DoubleDelta"),
    "time_first": ("ts, gpu, metric", "Delta"),
}
VALUE_CODECS: Final = {
    "zstd1": "ZSTD(1)",
    "zstd3": "ZSTD(3)",
    "lz4": "LZ4",
    "gorilla": "Gorilla, ZSTD(1)",
    "fpc": "FPC, ZSTD(1)",
    "delta": "Delta, ZSTD(1)",
    "alp": "ALP, ZSTD(1)",
}
ENGINE: Final = "ENGINE = MergeTree PARTITION BY toDate(ts) ORDER BY ({order})"
TAIL: Final = (
    "SETTINGS non_replicated_deduplication_window = 20000, fsync_after_insert = 1, fsync_part_directory = 1, "
    "min_bytes_for_wide_part = 67108864"
)


def run(settings: Settings) -> Iterator[Figure]:
    """Figures by design."""
    rows = settings.scaled(ROWS, 100_000)
    directory = settings.directory / "designs"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with programs() as started:
        port = free_port()
        started.append(
            Program("store", "clickhouse.cli", ["serve", "--data-dir", str(directory / "s")], directory, port)
        )
        started[-1].wait_ready()
        address = StoreAddress(url=f"http://127.0.0.1:{port}", database="designs", timeout_s=3600)
        with StoreConnection(address) as conn:
            conn.command("CREATE DATABASE designs")
            end_ms = time.time_ns() // 1_000_000
            for name in (*ORDERS, "wide"):
                yield from _design(settings, conn, name, rows, end_ms)
            yield from _codecs(conn)
    shutil.rmtree(directory, ignore_errors=True)


def _design(settings: Settings, conn: StoreConnection, name: str, rows: int, end_ms: int) -> Iterator[Figure]:
    conn.command(_create(name))
    # The same seed for every design: the same rows.
    fleet = Fleet(GPUS, end_ms - rows // (GPUS * len(METRICS)) * 1000 - 60_000)
    stored, seconds = 0, 0.0
    for number, delivery in enumerate(fleet.deliveries(rows)):
        for day, part in delivery.by_day():
            block = _wide_block(part) if name == "wide" else sample_block(part)
            columns = _wide_columns() if name == "wide" else SAMPLE_COLUMNS
            begun = _cpu_s(conn)
            conn.insert(name, block, columns, token=f"{name}/{number}/{day}")
            seconds += _cpu_s(conn) - begun
        stored += delivery.rows
    conn.command(f"OPTIMIZE TABLE designs.{name} FINAL", settings={"max_execution_time": 3600})
    size = conn.scalar(f"SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = '{name}'")
    yield Figure("designs", f"bytes_per_row_{name}", round(size / stored, 4), "bytes")
    yield Figure("designs", f"insert_cpu_ns_per_row_{name}", round(1e9 * seconds / stored, 1), "ns")
    gpu = fleet.devices[123].gpu_key
    for question, sql in _questions(name, gpu, end_ms).items():
        yield Figure("designs", f"{question}_{name}_cpu_ms", _cpu_ms(conn, sql, settings.runs * 5), "ms")


def _create(name: str) -> str:
    if name == "wide":
        metrics = ", ".join(f"{metric} Float64 CODEC(ZSTD(1))" for metric in METRICS)
        return f"CREATE TABLE designs.wide ({WIDE.format(metrics=metrics)}) {ENGINE.format(order='gpu, ts')} {TAIL}"
    order, codec = ORDERS[name]
    columns = NARROW.format(time=codec, value="ZSTD(1)")
    return f"CREATE TABLE designs.{name} ({columns}) {ENGINE.format(order=order)} {TAIL}"


def _wide_columns() -> list[str]:
    return ["gpu", "ts", *METRICS, "labels", "_session", "_seq"]


def _wide_block(columns: SampleColumns) -> bytes:
    """Rows of one GPU and second stand together, one a metric, in one order: a reshape turns them."""
    width = len(METRICS)
    first = slice(None, None, width)
    values = columns.value.reshape(-1, width)

    def number(name: str, kind: str, data: np.ndarray) -> Column:
        return Column(name, kind, native.numbers(kind, data))

    return native.block(
        len(values),
        [
            number("gpu", "UInt64", columns.gpu[first]),
            number("ts", "DateTime64(3, 'UTC')", columns.ts_ms[first]),
            *(number(metric, "Float64", values[:, i]) for i, metric in enumerate(METRICS)),
            number("labels", "UInt64", columns.labels[first]),
            number("_session", "UInt64", columns.session[first]),
            number("_seq", "UInt64", columns.seq[first]),
        ],
    )


def _questions(name: str, gpu: int, end_ms: int) -> dict[str, str]:
    table = f"designs.{name}"
    recent = f"ts >= toDateTime64({end_ms // 1000 - 120}, 3, 'UTC')"
    if name == "wide":
        latest = ", ".join(f"argMax({metric}, ts)" for metric in METRICS)
        value, only = METRIC, ""
        everything = ", ".join(f"min({metric}), max({metric}), sum({metric})" for metric in METRICS)
        rollup = f"SELECT gpu, toStartOfMinute(ts) AS m, count(), {everything} FROM {table} GROUP BY gpu, m"
        latest_sql = f"SELECT max(ts), {latest} FROM {table} WHERE gpu = {gpu}"
    else:
        value, only = "value", f"AND metric = '{METRIC}'"
        rollup = (
            "SELECT gpu, metric, toStartOfMinute(ts) AS m, count(), min(value), max(value), sum(value) "
            f"FROM {table} GROUP BY gpu, metric, m"
        )
        latest_sql = f"SELECT metric, max(ts), argMax(value, ts) FROM {table} WHERE gpu = {gpu} GROUP BY metric"
    return {
        "latest_of_gpu": latest_sql,
        "series_of_gpu": f"SELECT toStartOfInterval(ts, INTERVAL 10 SECOND) AS t, avg({value}), max({value}) "
        f"FROM {table} WHERE gpu = {gpu} {only} GROUP BY t ORDER BY t",
        "fleet_latest": f"SELECT gpu, argMax({value}, ts) FROM {table} WHERE {recent} {only} GROUP BY gpu",
        "fleet_all": f"SELECT toStartOfMinute(ts) AS m, avg({value}), max({value}) FROM {table} "
        f"WHERE 1 {only} GROUP BY m ORDER BY m",
        "rollup_minutes": f"SELECT sum(cityHash64(*)) FROM ({rollup})",
    }


def _codecs(conn: StoreConnection) -> Iterator[Figure]:
    """The value column under each codec, copied from the narrow design."""
    for name, codec in VALUE_CODECS.items():
        table = f"codec_{name}"
        columns = NARROW.format(time="DoubleDelta", value=codec)
        order = ORDERS["narrow"][0]
        allowed = {"enable_alp_codec": 1, "allow_suspicious_codecs": 1, "max_execution_time": 3600}
        conn.command(f"CREATE TABLE designs.{table} ({columns}) {ENGINE.format(order=order)}", settings=allowed)
        copied = f"SELECT * FROM designs.narrow WHERE gpu % {CODEC_SHARE} = 0"
        conn.command(f"INSERT INTO designs.{table} {copied}", settings={"max_execution_time": 3600})
        conn.command(f"OPTIMIZE TABLE designs.{table} FINAL", settings={"max_execution_time": 3600})
        size = conn.scalar(
            "SELECT sum(column_data_compressed_bytes) / sum(rows) FROM system.parts_columns "
            f"WHERE active AND table = '{table}' AND column = 'value'"
        )
        yield Figure("designs", f"value_bytes_{name}", round(float(size), 4), "bytes")
        milliseconds = _cpu_ms(conn, f"SELECT sum(value) FROM designs.{table}", 5)
        yield Figure("designs", f"read_all_{name}_cpu_ms", milliseconds, "ms")


def _cpu_s(conn: StoreConnection) -> float:
    """CPU seconds of every query so far."""
    used = conn.scalar("SELECT sum(value) FROM system.events WHERE event = 'OSCPUVirtualTimeMicroseconds'")
    return int(used or 0) / 1e6


def _cpu_ms(conn: StoreConnection, sql: str, times: int) -> float:
    conn.query(sql)
    spent = []
    for _ in range(times):
        begun = _cpu_s(conn)
        conn.query(sql)
        spent.append(_cpu_s(conn) - begun)
    return float(f"{statistics.median(spent) * 1000:.4g}")
