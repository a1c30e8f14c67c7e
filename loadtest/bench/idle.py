"""idle: what a broker costs while 50 producers and 50 consumers are connected and nothing is published.

Beside it stands the same broker without connections: heartbeats are the difference.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Role, programs, start_broker
from zmqbroker.client import Consumer, Producer

PAIRS: Final = 50
SECONDS: Final = 30.0
SETTLE_SECONDS: Final = 2.0


def run(settings: Settings) -> Iterator[Figure]:
    seconds = max(1.0, SECONDS * settings.scale)
    pairs = settings.scaled(PAIRS, 1)
    connected, alone = [], []
    for _ in range(settings.runs):
        alone.append(_percent_of_a_core(settings, 0, seconds))
        connected.append(_percent_of_a_core(settings, pairs, seconds))
    # Beside each other, without a ratio: an idle process may well use less than the clock can tell.
    yield compare("idle", "connections_0_core_percent", "%", alone)
    yield compare("idle", "connections_100_core_percent", "%", connected)


def _percent_of_a_core(settings: Settings, pairs: int, seconds: float) -> float:
    directory = settings.directory / "idle"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with programs() as started:
        broker, url = start_broker(started, directory)
        broker.wait_ready()
        clients = Role(_connect, url, pairs, seconds)
        try:
            clients.ready()
            time.sleep(SETTLE_SECONDS)
            before = broker.cpu_seconds()
            clients.go()
            clients.result(seconds + 60)
            used = broker.cpu_seconds() - before
        finally:
            clients.end()
    shutil.rmtree(directory, ignore_errors=True)
    return 100 * used / seconds


def _connect(go: Callable[[], None], url: str, pairs: int, seconds: float) -> None:
    """Connect and stay: every producer has published, every consumer is a member of the group and has credit."""
    producers = [Producer(url, "idle") for _ in range(pairs)]
    consumers = [Consumer(url, "idle", "collectors") for _ in range(pairs)]
    for producer in producers:
        producer.publish(b"hello", rows=1)
        if not producer.flush(30):
            raise RuntimeError("the broker did not answer")
    deadline = time.monotonic() + 30
    while not all(consumer.connected for consumer in consumers):
        if time.monotonic() > deadline:
            raise RuntimeError("not every consumer was taken")
        time.sleep(0.05)
    go()
    time.sleep(seconds)
