"""tuning: what batch rows, linger, credit, partitions and worker counts cost and bring, one curve each.

Throughput of a batch size: as fast as one producer publishes, from its first batch until the last row is stored. Of
credit, partitions and workers: a backlog of 1,000-row batches that one collector drains, as in the bench `collector`.
Latency: 100,000 rows a second, from publish until a query sees the batch, as in the bench `latency`; beside it what the
store and the collector use for it. Each curve changes one option and leaves the others at their defaults; the tables
and charts of docs/tuning.md are made from the result.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from clickhouse.client import StoreAddress, StoreConnection
from loadtest.bench.collector import TIMEOUT_S, drain, fill, fresh_store
from loadtest.bench.fleet_file import fleet_csv
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.latency import PATIENCE_S, WARM_UP_S, publish_rows, watch
from loadtest.bench.pipeline import ROWS as FILE_ROWS
from loadtest.bench.pipeline import RUN_TIMEOUT_S
from loadtest.bench.processes import Program, Role, free_port, programs, start_broker

BATCH_ROWS: Final = (100, 300, 1_000, 3_000, 10_000)
LINGER_MS: Final = (5, 20, 100, 250, 500)
CREDIT: Final = (1, 2, 4, 8)
PARTITIONS: Final = (1, 2, 4, 16)
COLLECTOR_WORKERS: Final = (1, 2, 4)
STREAMER_WORKERS: Final = (1, 2, 4)
ROWS: Final = 4_000_000
BATCHES_MAX: Final = 6_000
"""Small batches are slow: fewer rows show it as well."""
RATE: Final = 100_000
SECONDS: Final = 9.0


class Point(NamedTuple):
    """One value of one option: figure -> value."""

    value: int
    figures: dict[str, float]


def run(settings: Settings) -> Iterator[Figure]:
    """Every point of every curve; the curves as such go to the notes."""
    curves = {
        "batch_rows": [batch_rows(settings, rows) for rows in BATCH_ROWS],
        "linger_ms": [Point(ms, latency(settings, 1_000, "--linger", f"{ms}ms")) for ms in LINGER_MS],
        "credit": [Point(n, backlog(settings, ["--credit", str(n)])) for n in CREDIT],
        "partitions": [Point(n, backlog(settings, [], ["--partitions", str(n)])) for n in PARTITIONS],
        "collector_workers": [Point(n, backlog(settings, ["--workers", str(n)])) for n in COLLECTOR_WORKERS],
        "streamer_workers": [Point(n, file(settings, n)) for n in STREAMER_WORKERS],
    }
    settings.notes["curves"] = {
        name: [{name: point.value, **point.figures} for point in points] for name, points in curves.items()
    }
    for name, points in curves.items():
        for point in points:
            for figure, value in point.figures.items():
                yield compare("tuning", f"{figure}_{name}_{point.value}", UNITS[figure], [value])


UNITS: Final = {
    "rows_per_s": "rows/s",
    "p50_ms": "ms",
    "p99_ms": "ms",
    "inserts_per_s": "1/s",
    "store_cores": "cores",
    "collector_cores": "cores",
}


def batch_rows(settings: Settings, rows: int) -> Point:
    return Point(rows, {"rows_per_s": through(settings, rows)} | latency(settings, rows))


class Stack:
    """Store and broker on empty directories; a collector when it is asked for."""

    def __init__(self, settings: Settings, started: list[Program], broker: Sequence[str] = ()) -> None:
        self.started = started
        self.directory: Path = settings.directory / "tuning"
        self.store, self.url = fresh_store(started, self.directory)
        program, self.broker = start_broker(started, self.directory, *broker)
        self.store.wait_ready()
        program.wait_ready()

    def collector(self, *arguments: str) -> tuple[Program, int]:
        """A collector, and the port of its /stats."""
        port = free_port()
        arguments = ("--connect", self.broker, "--clickhouse", self.url, *arguments)
        self.started.append(Program("collector", "consumers.cli", arguments, self.directory, port))
        return self.started[-1], port


def through(settings: Settings, batch: int) -> float:
    """Rows a second from the first publish until all are stored."""
    rows = max(1, settings.scaled(min(ROWS, BATCHES_MAX * batch)) // batch) * batch
    with programs() as started:
        stack = Stack(settings, started)
        collector, port = stack.collector()
        collector.wait_ready()
        feeder = Role(fill, stack.broker, rows, batch)
        try:
            feeder.ready(120)
            feeder.go()
            begun = time.monotonic()
            drain(port, rows)
            return rows / (time.monotonic() - begun)
        finally:
            feeder.end()


def backlog(settings: Settings, collector: Sequence[str], broker: Sequence[str] = ()) -> dict[str, float]:
    """Rows a second that one collector stores of what waits for it; the median of the runs."""
    rows = settings.scaled(ROWS // 1_000) * 1_000
    rates = []
    for _ in range(settings.runs):
        with programs() as started:
            stack = Stack(settings, started, broker)
            feeder = Role(fill, stack.broker, rows)
            try:
                feeder.ready(120)
                feeder.go()
                feeder.result(TIMEOUT_S)
            finally:
                feeder.end()
            seconds, _figures = drain(stack.collector(*collector)[1], rows)
            rates.append(rows / seconds)
    shutil.rmtree(stack.directory, ignore_errors=True)
    return {"rows_per_s": statistics.median(rates)}


def latency(settings: Settings, batch: int, *collector: str) -> dict[str, float]:
    """Milliseconds from publish until a query sees a batch, and the cores that store and collector are busy with."""
    seconds = max(2.0, SECONDS * settings.scale)
    batches_per_s = RATE / batch
    batches = int(seconds * batches_per_s)
    with programs() as started:
        stack = Stack(settings, started)
        program, port = stack.collector(*collector)
        program.wait_ready()
        producer = Role(publish_rows, stack.broker, RATE, seconds, batches_per_s)
        try:
            producer.ready()
            with StoreConnection(StoreAddress(url=stack.url)) as conn:
                begun = [stack.store.cpu_seconds(), program.cpu_seconds()]
                producer.go()
                seen = watch(conn, batches)
                used = [stack.store.cpu_seconds() - begun[0], program.cpu_seconds() - begun[1]]
            sent: dict[int, float] = producer.result(PATIENCE_S)
            _, figures = drain(port, batches * batch)
        finally:
            producer.end()
    shutil.rmtree(stack.directory, ignore_errors=True)
    first = int(min(WARM_UP_S, seconds / 2) * batches_per_s)
    taken_ms = sorted(1000 * (seen[seq] - at) for seq, at in sorted(sent.items())[first:])
    return {
        "p50_ms": statistics.median(taken_ms),
        "p99_ms": taken_ms[min(len(taken_ms) - 1, int(len(taken_ms) * 0.99))],
        "inserts_per_s": figures["inserts"] / seconds,
        "store_cores": used[0] / seconds,
        "collector_cores": used[1] / seconds,
    }


def file(settings: Settings, workers: int) -> dict[str, float]:
    """Rows a second of a CSV file into the broker, by a streamer from its launch to its end."""
    path, rows = fleet_csv(settings, FILE_ROWS)
    with programs() as started:
        stack = Stack(settings, started)
        arguments: list[Any] = ["csv", path, "--timestamps", "shift", "--connect", stack.broker]
        arguments += ["--state-dir", stack.directory, "--workers", workers]
        begun = time.monotonic()
        streamer = Program("streamer", "producers.cli", [str(a) for a in arguments], stack.directory, free_port())
        started.append(streamer)
        streamer.finish(RUN_TIMEOUT_S)
        seconds = time.monotonic() - begun
    shutil.rmtree(stack.directory, ignore_errors=True)
    return {"rows_per_s": rows / seconds}
