"""latency: how long a batch takes from publish to delivered, and from publish to seen by a query.

Delivered: 1,000 batches a second through a durable broker to a consumer in another process, on an idle machine.
Queryable: rows at a fixed rate through broker and one collector, deliveries after at most 20 ms; a query asks every
10 ms which batches are there, so that a figure is up to 10 ms and the query's own time too long, never too short.
All processes read one clock (the system's monotonic one). A batch that was not seen in time fails the run.
"""

from __future__ import annotations

import shutil
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from clickhouse.client import StoreAddress, StoreConnection
from loadtest.bench.collector import METRICS, devices
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, Role, free_port, programs, start_broker
from telemetry.batch import DictionaryEncoder, encode
from zmqbroker.client import Consumer, Producer

SECONDS: Final = 20.0
WARM_UP_S: Final = 3.0
"""Left out of the figures: connections, caches and the first parts are made then."""
BATCHES_PER_S: Final = 1_000
PUBLISHES_PER_S: Final = 100
POLL_S: Final = 0.01
PATIENCE_S: Final = 30.0
_STAMP: Final = struct.Struct("<q")


def run(settings: Settings) -> Iterator[Figure]:
    """p50 and p99 of each way, in ms."""
    seconds = max(2.0, SECONDS * settings.scale)
    p50, p99 = _percentiles(settings, lambda: delivered(settings, seconds))
    yield compare("latency", "delivered_p50_ms", "ms", p50)
    yield compare("latency", "delivered_p99_ms", "ms", p99)
    for rate, name in ((1_000, "1k"), (100_000, "100k")):
        p50, p99 = _percentiles(settings, lambda rate=rate: queryable(settings, rate, seconds))
        yield compare("latency", f"queryable_p50_ms_{name}", "ms", p50)
        yield compare("latency", f"queryable_p99_ms_{name}", "ms", p99)


def _percentiles(settings: Settings, measure: Callable[[], list[float]]) -> tuple[list[float], list[float]]:
    p50, p99 = [], []
    for _ in range(settings.runs):
        taken_ms = sorted(1000 * taken_s for taken_s in measure())
        p50.append(statistics.median(taken_ms))
        p99.append(taken_ms[min(len(taken_ms) - 1, int(len(taken_ms) * 0.99))])
    return p50, p99


def delivered(settings: Settings, seconds: float) -> list[float]:
    """Seconds from publish to the consumer's hands, a batch."""
    directory = settings.directory / "latency"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with programs() as started:
        url = _broker(started, directory)
        consumer = Role(_consume, url, seconds)
        producer = Role(_publish_stamps, url, seconds)
        try:
            consumer.ready()
            producer.ready()
            consumer.go()
            producer.go()
            producer.result(seconds + PATIENCE_S)
            return list(consumer.result(seconds + PATIENCE_S))
        finally:
            producer.end()
            consumer.end()


def _broker(started: list[Program], directory: Path) -> str:
    broker, url = start_broker(started, directory)
    broker.wait_ready()
    return url


def _publish_stamps(go: Callable[[], None], url: str, seconds: float) -> None:
    filler = bytes(20_000 - _STAMP.size)
    with Producer(url) as producer:
        go()
        begun = time.monotonic()
        for number in range(int(seconds * BATCHES_PER_S)):
            _sleep_until(begun + number / BATCHES_PER_S)
            producer.publish(_STAMP.pack(time.monotonic_ns()) + filler, 1_000)
        if not producer.flush(PATIENCE_S):
            raise RuntimeError("the broker did not acknowledge in time")


def _consume(go: Callable[[], None], url: str, seconds: float) -> list[float]:
    wanted = int(seconds * BATCHES_PER_S)
    taken: list[float] = []
    with Consumer(url, group="latency", credit=64, linger_ms=0, options={"seal_interval_ms": 0}) as consumer:
        go()
        while len(taken) < wanted:
            delivery = consumer.receive(PATIENCE_S)
            if delivery is None:
                raise RuntimeError(f"{wanted - len(taken)} batches were not delivered")
            now = time.monotonic_ns()
            taken += [(now - _STAMP.unpack_from(payload)[0]) / 1e9 for payload in delivery.payloads()]
            consumer.ack(delivery)
    return taken[int(min(WARM_UP_S, seconds / 2) * BATCHES_PER_S) :]


def queryable(settings: Settings, rate: int, seconds: float) -> list[float]:
    """Seconds from publish until a query sees the batch."""
    directory = settings.directory / "latency"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with programs() as started:
        port = free_port()
        store = f"http://127.0.0.1:{port}"
        arguments = ["serve", "--migrate", "--data-dir", str(directory / "store")]
        started.append(Program("store", "clickhouse.cli", arguments, directory, port))
        started[-1].wait_ready()
        url = _broker(started, directory)
        arguments = ["--connect", url, "--clickhouse", store, "--linger", "20ms"]
        started.append(Program("collector", "consumers.cli", arguments, directory, free_port()))
        started[-1].wait_ready()
        producer = Role(publish_rows, url, rate, seconds)
        try:
            producer.ready()
            with StoreConnection(StoreAddress(url=store)) as conn:
                producer.go()
                seen = watch(conn, int(seconds * PUBLISHES_PER_S))
            sent = producer.result(PATIENCE_S)
        finally:
            producer.end()
    first = int(min(WARM_UP_S, seconds / 2) * PUBLISHES_PER_S)
    return [seen[seq] - at for seq, at in sorted(sent.items())[first:]]


def publish_rows(
    go: Callable[[], None], url: str, rate: int, seconds: float, publishes_per_s: float = PUBLISHES_PER_S
) -> dict[int, float]:
    """When each seq was published."""
    dictionary = DictionaryEncoder().encode(devices()[:1000], METRICS)
    rows = round(rate / publishes_per_s)
    device, metric = (
        (np.arange(rows) // len(METRICS) % 1000).astype("u2"),
        (np.arange(rows) % len(METRICS)).astype("u2"),
    )
    value = np.round(50 + 20 * np.sin(np.arange(rows) * 0.37))
    sent: dict[int, float] = {}
    with Producer(url) as producer:
        go()
        begun = time.monotonic()
        for number in range(int(seconds * publishes_per_s)):
            _sleep_until(begun + number / publishes_per_s)
            at, ts_ns = time.monotonic(), np.full(rows, time.time_ns())

            def payload(session: int, seq: int, at: float = at, ts_ns: np.ndarray = ts_ns) -> bytes:
                sent[seq] = at
                return encode(session, seq, ts_ns, device, metric, value, dictionary, created_ns=int(ts_ns[0]))

            producer.publish(payload, rows)
        producer.flush(PATIENCE_S)
    return sent


def watch(conn: StoreConnection, batches: int) -> dict[int, float]:
    """When each seq was first seen."""
    seen: dict[int, float] = {}
    floor, quiet_since = 0, time.monotonic()
    while len(seen) < batches:
        rows = conn.query("SELECT DISTINCT _seq FROM telemetry.samples WHERE _seq > {floor:UInt64}", {"floor": floor})
        now = time.monotonic()
        for (seq,) in rows:
            if seq not in seen:
                seen[seq] = quiet_since = now
        while floor + 1 in seen:
            floor += 1
        if now - quiet_since > PATIENCE_S:
            raise RuntimeError(f"{batches - len(seen)} of {batches} batches were not seen")
        time.sleep(POLL_S)
    return seen


def _sleep_until(at: float) -> None:
    left = at - time.monotonic()
    if left > 0:
        time.sleep(left)
