"""Garbage, truncated, oversized, wrong-version and wrong-order messages for a real broker's port.

``python -m tests.simulation.fuzz --messages 1000000`` plays many; it fails where the broker dies, stops serving others,
or grows.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.client import Consumer, Producer
from zmqbroker.core.config import BrokerConfig
from zmqbroker.protocol import HEADER_BYTES, Type
from zmqbroker.server import Broker, ServerConfig
from zmqbroker.sockets import VIEW_FROM_BYTES

MESSAGE_BYTES_MAX = 1 << 16
LARGE_BYTES = VIEW_FROM_BYTES + 1


class Fuzzer:
    """Messages that no client sends, under a seed. Most are nearly right: those get furthest."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def message(self) -> list[bytes]:
        rng = self.rng
        kind = rng.random()
        if kind < 0.1:
            return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 5))]
        header = self.header()
        if kind < 0.2:
            return [header[: rng.randrange(HEADER_BYTES)], *self.frames()]
        if kind < 0.3:
            changed = bytearray(header)
            changed[rng.randrange(HEADER_BYTES)] ^= 1 << rng.randrange(8)
            return [bytes(changed), *self.frames()]
        if kind < 0.35:
            return [header + rng.randbytes(rng.choice([rng.randrange(5000), LARGE_BYTES])), *self.frames()]
        if kind < 0.36:
            return [header, rng.randbytes(MESSAGE_BYTES_MAX + rng.randrange(200))]
        return [header, *self.frames()]

    def number(self, bits: int) -> int:
        rng = self.rng
        return rng.choice([0, 1, 2, rng.randrange(20), rng.randrange(1 << bits), (1 << bits) - 1])

    def header(self) -> bytes:
        rng = self.rng
        return protocol.HEADER.pack(
            protocol.MAGIC,
            protocol.VERSION if rng.random() < 0.95 else rng.randrange(256),
            rng.choice(list(Type)) if rng.random() < 0.95 else rng.randrange(256),
            self.number(8),
            self.number(16),
            rng.choice([1, 1, 1, 2, self.number(32)]),
            self.number(32),
            *(self.number(64) for _ in range(4)),
            *(self.number(32) for _ in range(4)),
        )

    def frames(self) -> list[bytes]:
        rng = self.rng
        return [self.frame() for _ in range(rng.choice([0, 1, 1, 2, 2, 2, 3, 8]))]

    def frame(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.02:
            return rng.randbytes(LARGE_BYTES)
        kind = rng.randrange(7)
        if kind == 0:
            return rng.choice([b"fuzz", b"fuzz2", b"../etc", b"", b"\xff\xfe", b"x" * 300, b"fuzz.dlq"])
        if kind == 1:
            return protocol.pack_options({"group": "g", "name": "x"})
        if kind == 2:
            values = [None, 5, "x", [], [[1, 1]], {"a": 1}, -1, 1e308, True, "ordered", "earliest", [["a", {}]]]
            keys = [
                "group", "mode", "durable", "start", "max_rows", "max_bytes", "linger_ms", "log", "holding", "name",
                "ack_timeout_s", "retry_backoff_s",
            ]  # fmt: skip
            chosen = {key: rng.choice(values) for key in rng.sample(keys, rng.randrange(len(keys)))}
            return protocol.pack_options({"group": "g", **chosen})
        if kind == 3:
            return rng.choice([b"[" * 1000, b'{"a":' * 500, b"NaN", b'{"max_rows": NaN}', b"null"])
        if kind == 4:
            return b"\0" * (8 * rng.randrange(6))
        if kind == 5:
            payload = rng.randbytes(rng.randrange(100))
            return payload + crc32c(payload).to_bytes(4, "little")
        return rng.randbytes(rng.randrange(64))


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def play(messages: int, seed: int, progress: Callable[[int], None] = lambda played: None) -> str:
    """What broke, or "". The broker runs in this process, so that its loop's death is seen at once.

    ``progress`` is called with the number of messages played, ten times in all.
    """
    fuzzer = Fuzzer(seed)
    rng = fuzzer.rng
    with tempfile.TemporaryDirectory() as directory:
        config = BrokerConfig(message_bytes_max=MESSAGE_BYTES_MAX, topics_max=8, connections_max=50)
        broker = Broker(ServerConfig(Path(directory), bind=("tcp://127.0.0.1:0",), broker=config))
        broker.start()
        context: zmq.Context = zmq.Context()
        url = broker.endpoints[0]
        sockets: list[zmq.Socket] = []
        grown_from = 0
        try:
            with Producer(url, "real") as producer, Consumer(url, "real", "real", linger_ms=5) as consumer:
                for i in range(messages):
                    if len(sockets) < 6 or rng.random() < 0.002:
                        if len(sockets) >= 6:
                            sockets.pop(rng.randrange(6)).close(0)
                        socket = context.socket(zmq.DEALER)
                        socket.set(zmq.SNDHWM, 1000)
                        socket.connect(url)
                        sockets.append(socket)
                    socket = rng.choice(sockets)
                    message = fuzzer.message()
                    while True:
                        try:
                            socket.send_multipart(message, zmq.NOBLOCK)
                            break
                        except (
                            zmq.Again
                        ):  # it is not connected yet, or the broker has much to read: every message counts
                            time.sleep(0.001)
                    if i % 8 == 0:
                        for s in sockets:
                            with contextlib.suppress(zmq.Again):
                                while True:
                                    s.recv_multipart(zmq.NOBLOCK)
                    if (i + 1) * 10 // messages > i * 10 // messages:
                        progress(i + 1)
                    if i % 500 == 499:
                        time.sleep(0.005)  # the broker shares this process's interpreter lock
                        if not broker.alive:
                            return f"after {i + 1} messages the broker's loop ended: {broker.failed!r}"
                    if i % 5000 == 4999 or i == messages - 1:
                        receipt = producer.publish(b"still here", rows=1)
                        if not receipt.wait(30):
                            return f"after {i + 1} messages a producer is not served any more"
                        delivery = consumer.receive(30)
                        if delivery is None:
                            return f"after {i + 1} messages a consumer is not served any more"
                        consumer.ack(delivery)
                        if i >= messages // 5:
                            grown_from = grown_from or rss_bytes()
                            if rss_bytes() > grown_from + (300 << 20):
                                return f"after {i + 1} messages memory grew to {rss_bytes() >> 20} MiB"
        finally:
            for socket in sockets:
                socket.close(0)
            context.destroy(0)
            broker.stop(5)
        if broker.failed is not None:
            return f"the broker's loop ended: {broker.failed!r}"
    return ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    started_s = time.monotonic()
    broken = play(
        options.messages, options.seed, lambda n: print(f"{n} messages, {rss_bytes() >> 20} MiB resident", flush=True)
    )
    print(
        f"seed {options.seed}: {broken or 'fine'}; {options.messages} messages, "
        f"{rss_bytes() >> 20} MiB resident, {time.monotonic() - started_s:.1f} s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
