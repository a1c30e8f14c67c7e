"""relay: the durable broker beside a bare ROUTER relay that keeps nothing and acknowledges nothing.

Producer, relay and consumer are processes of their own. Ours: one batch a PUBLISH, acknowledged to the producer when it
is on disk (fdatasync), delivered to a consumer that acknowledges each range; the clock stops when the producer holds
every ack and the consumer has sent its last. Baseline: DEALER -> ROUTER -> DEALER in pyzmq, the clock stops when the
consumer has the last message; flow control is ZeroMQ's own high-water marks.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import zmq

from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Role, free_port, programs, start_broker
from telemetry.batch import Device, DictionaryEncoder, encode
from zmqbroker.client import Consumer, Producer

BASELINE: Final = "bare pyzmq ROUTER relay"
RUN_TIMEOUT_S: Final = 300.0


def batch_20kB() -> bytes:
    """1,000 rows of one host, uncompressed."""
    devices = [Device(uuid=f"GPU-{i:032x}", hostname="host-1", gpu_index=str(i), model="H100") for i in range(8)]
    dictionary = DictionaryEncoder().encode(devices, [f"DCGM_FI_METRIC_{i}" for i in range(10)])
    i = np.arange(1000)
    return encode(1, 1, i * 10**9, i % 8, i % 10, i * 0.5, dictionary, created_ns=0, compression="none")


# metric, payload, rows a message, messages a run
WORKS: Final = (
    ("batches_20kB_per_s", batch_20kB(), 1000, 10_000),
    ("messages_100B_per_s", b"x" * 100, 1, 200_000),
)


def run(settings: Settings) -> Iterator[Figure]:
    """Two figures; runs of ours and of the baseline alternate, so that both meet the same machine."""
    for metric, payload, rows, count in WORKS:
        count = settings.scaled(count, 50)
        ours, bare = [], []
        for _ in range(settings.runs):
            ours.append(count / broker_seconds(settings, payload, rows, count))
            bare.append(count / relay_seconds(payload, count))
        settings.notes[metric] = {"ours": ours, "baseline": bare, "messages": count, "bytes": len(payload)}
        yield compare("relay", metric, "1/s", ours, BASELINE, bare)


def broker_seconds(settings: Settings, payload: bytes, rows: int, count: int) -> float:
    """Seconds from the first publish to the last ack on either side."""
    directory = settings.directory / "relay"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with programs() as started:
        broker, url = start_broker(started, directory)
        broker.wait_ready()
        seconds = between_roles(Role(consume, url, count), Role(produce, url, payload, rows, count))
    shutil.rmtree(directory, ignore_errors=True)
    return seconds


def relay_seconds(payload: bytes, count: int) -> float:
    """Seconds from the first send to the last receive."""
    url = f"tcp://127.0.0.1:{free_port()}"
    relay = Role(bare_relay, url)
    relay.ready()
    relay.go()
    try:
        return between_roles(Role(bare_consume, url, count), Role(bare_produce, url, payload, count))
    finally:
        relay.end()


def between_roles(consumer: Role, producer: Role) -> float:
    """Start both, return the seconds from the producer's start to the later end (one clock on one machine)."""
    try:
        consumer.ready()
        consumer.go()
        producer.ready()
        producer.go()
        begun, sent = producer.result(RUN_TIMEOUT_S)
        got = consumer.result(RUN_TIMEOUT_S)
        return float(max(sent, got) - begun)
    finally:
        consumer.end()
        producer.end()


def produce(go: Callable[[], None], url: str, payload: bytes, rows: int, count: int) -> tuple[float, float]:
    """Publish ``count`` messages and wait until each is durable; (begin, end)."""
    producer = Producer(url, "bench")
    producer.publish(payload, rows).wait(30)  # connected, and the topic exists
    go()
    begun = time.monotonic()
    for _ in range(count):
        producer.publish(payload, rows)
    if not producer.flush(RUN_TIMEOUT_S):
        raise RuntimeError("not every message was acknowledged")
    ended = time.monotonic()
    producer.close(5)
    return begun, ended


def consume(go: Callable[[], None], url: str, count: int) -> float:
    """Receive and acknowledge until ``count`` messages and the first one are there; the time of the last ack."""
    consumer = Consumer(url, "bench", "bench", credit=4, max_bytes=4 << 20)
    go()
    seen = 0
    while seen < count + 1:
        delivery = consumer.receive(60)
        if delivery is None:
            raise RuntimeError(f"nothing came for a minute after {seen} messages")
        seen += len(delivery.records)
        consumer.ack(delivery)
    ended = time.monotonic()
    consumer.close(5)
    return ended


def _socket(kind: int, identity: bytes = b"") -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = 10_000
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    return socket


def bare_relay(go: Callable[[], None], url: str) -> None:
    """Receive, send on, for ever. MANDATORY, so that a full consumer holds it back instead of losing messages."""
    router = _socket(zmq.ROUTER)
    router.router_mandatory = True
    router.bind(url)
    go()
    while True:
        frames = router.recv_multipart()
        frames[0] = b"consumer"
        try:
            router.send_multipart(frames)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise


def bare_produce(go: Callable[[], None], url: str, payload: bytes, count: int) -> tuple[float, float]:
    dealer = _socket(zmq.DEALER, b"producer")
    dealer.connect(url)
    go()
    begun = time.monotonic()
    for _ in range(count):
        dealer.send(payload)
    ended = time.monotonic()
    dealer.close(linger=60_000)
    zmq.Context.instance().term()
    return begun, ended


def bare_consume(go: Callable[[], None], url: str, count: int) -> float:
    dealer = _socket(zmq.DEALER, b"consumer")
    dealer.connect(url)
    probe(dealer)
    go()
    for _ in range(count):
        dealer.recv()
    return time.monotonic()


def probe(dealer: zmq.Socket[bytes]) -> None:
    """Send to ourselves through the relay until it comes back: then the relay can reach this consumer."""
    while True:
        dealer.send(b"probe")
        if dealer.poll(200):
            dealer.recv()
            break
    while dealer.poll(200):  # of several probes, late ones
        dealer.recv()
