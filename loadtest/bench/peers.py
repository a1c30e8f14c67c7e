"""peers: the work of ``relay`` through NATS JetStream and Redis Streams; the value is ours, the baseline the peer.

Each peer is driven the way its own documentation advises for speed, with a Python client: JetStream with
``publish_async`` and a window of unacked messages, a durable pull consumer that fetches batches and acks the last of
each (AckPolicy ALL); Redis with pipelined XADD, XREADGROUP in batches and one XACK a batch. Producer, server and
consumer are processes of their own; the clock runs from the first publish to the later of the last ack on either side.

JetStream is run twice: with ``sync_interval: always``, which alone promises what our acks promise, and with its
default, which acks before anything is synced. Redis runs with ``appendonly yes, appendfsync everysec``. A peer whose
server is not installed is left out, and said so.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Role, free_port
from loadtest.bench.relay import RUN_TIMEOUT_S, batch_20kB, between_roles, broker_seconds

WORKS: Final = (("20kB", batch_20kB(), 1000, 20_000), ("100B", b"x" * 100, 1, 100_000))
SLOW_SHARE: Final = 0.2
"""With a sync a message a peer is several times as slow: it gets a fifth of the messages, and still takes longer. Rates
are compared, each taken over a second or more: a shorter run would measure how it starts."""
WINDOW: Final = 2000
FETCH: Final = 500
MISSING: Final = "missing"


def run(settings: Settings) -> Iterator[Figure]:
    for size, payload, rows, count in WORKS:
        for peer, measure in PEERS.items():
            if peer == "redis" and size == "100B" and not shutil.which("redis-server"):
                continue
            ours_count = settings.scaled(count, 50)
            peer_count = settings.scaled(int(count * (SLOW_SHARE if peer == "jetstream_sync" else 1)), 50)
            ours, theirs = [], []
            for _ in range(settings.runs):
                seconds = measure(settings, payload, peer_count)
                if seconds is None:
                    print(f"peers: {peer} left out, its server is not installed", file=sys.stderr)
                    break
                theirs.append(peer_count / seconds)
                ours.append(ours_count / broker_seconds(settings, payload, rows, ours_count))
            if theirs:
                messages = {"ours": ours_count, "peer": peer_count}
                settings.notes[f"{peer}_{size}"] = {"ours": ours, "peer": theirs, "messages": messages}
                yield compare("peers", f"{peer}_{size}", "1/s", ours, peer, theirs)


@contextmanager
def server(command: list[str], port: int, directory: Path) -> Iterator[None]:
    """Run a server until it answers on its port; end it and remove its data afterwards."""
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=directory)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended: {(directory / 'server.log').read_text()[-500:]}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def _fresh(settings: Settings, name: str) -> Path:
    directory = settings.directory / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


# --- NATS JetStream ------------------------------------------------------------------------------------------------


def jetstream(settings: Settings, payload: bytes, count: int, *, always: bool = False) -> float | None:
    binary = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if binary is None:
        return None
    directory = _fresh(settings, "jetstream")
    port = free_port()
    sync = "sync_interval: always" if always else ""
    (directory / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\nmax_payload: 8MB\njetstream {{ store_dir: "{directory}/data"\n {sync} }}\n'
    )
    with server([binary, "-c", str(directory / "nats.conf")], port, directory):
        url = f"nats://127.0.0.1:{port}"
        return between_roles(Role(jetstream_consume, url, count), Role(jetstream_produce, url, payload, count))


def jetstream_sync(settings: Settings, payload: bytes, count: int) -> float | None:
    return jetstream(settings, payload, count, always=True)


def jetstream_produce(go: Callable[[], None], url: str, payload: bytes, count: int) -> tuple[float, float]:
    async def work() -> tuple[float, float]:
        import nats

        connection = await nats.connect(url)
        js = connection.jetstream(publish_async_max_pending=WINDOW)
        go()
        begun = time.monotonic()
        futures = [await js.publish_async("bench.t", payload, wait_stall=RUN_TIMEOUT_S) for _ in range(count)]
        await asyncio.wait_for(js.publish_async_completed(), RUN_TIMEOUT_S)
        for future in futures:
            future.result()
        ended = time.monotonic()
        await connection.close()
        return begun, ended

    return asyncio.run(work())


def jetstream_consume(go: Callable[[], None], url: str, count: int) -> float:
    async def work() -> float:
        import nats
        from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

        connection = await nats.connect(url)
        js = connection.jetstream()
        await js.add_stream(StreamConfig(name="bench", subjects=["bench.*"], storage=StorageType.FILE))
        config = ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=-1)
        subscription = await js.pull_subscribe("bench.t", "bench", config=config)
        go()
        seen = 0
        while seen < count:
            messages = await subscription.fetch(min(FETCH, count - seen), timeout=60)
            seen += len(messages)
            # As ours: acks are sent and not waited for, but for the last.
            await (messages[-1].ack() if seen < count else messages[-1].ack_sync(timeout=60))
        ended = time.monotonic()
        await connection.close()
        return ended

    return asyncio.run(work())


# --- Redis Streams -------------------------------------------------------------------------------------------------


def redis_streams(settings: Settings, payload: bytes, count: int) -> float | None:
    binary = shutil.which("redis-server")
    if binary is None:
        return None
    directory = _fresh(settings, "redis")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "everysec"]
    command += ["--save", "", "--dir", str(directory)]
    with server(command, port, directory):
        return between_roles(Role(redis_consume, port, count), Role(redis_produce, port, payload, count))


def redis_produce(go: Callable[[], None], port: int, payload: bytes, count: int) -> tuple[float, float]:
    import redis

    client = redis.Redis(port=port)
    step = 100 if len(payload) > 1000 else 1000
    go()
    begun = time.monotonic()
    for at in range(0, count, step):
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(step, count - at)):
            pipeline.xadd("bench", {b"b": payload})
        pipeline.execute()
    return begun, time.monotonic()


def redis_consume(go: Callable[[], None], port: int, count: int) -> float:
    import redis

    client = redis.Redis(port=port)
    client.xgroup_create("bench", "g", id="0", mkstream=True)
    go()
    seen = 0
    while seen < count:
        answer: Any = client.xreadgroup("g", "c", {"bench": ">"}, count=FETCH, block=60_000)
        for _, entries in answer:
            client.xack("bench", "g", *[entry[0] for entry in entries])
            seen += len(entries)
    return time.monotonic()


PEERS: Final[dict[str, Callable[[Settings, bytes, int], float | None]]] = {
    "jetstream": jetstream,
    "jetstream_sync": jetstream_sync,
    "redis": redis_streams,
}
