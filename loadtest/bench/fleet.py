"""fleet: thousands of connected agents, each publishing 100 rows once a second, with a discarding consumer attached.

The agents are real protocol conversations over real TCP connections, one DEALER each, many to a driver process (an
epoll loop instead of a thread an agent). Reported: rows taken and consumed a second, and the slowest agent's median
ack time over the median of all, which says whether credit and the loop are fair to each agent.

An agent sends at a random moment of each second. At one and the same moment each second it would measure what else
happens then on two full cores that also drive the fleet: all agents of that moment, in both drivers, were slow alike.
What such moments cost shows in the notes, as the p99 of all acks.
"""

from __future__ import annotations

import gc
import heapq
import random
import select
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import psutil
import zmq
from crc32c import crc32c

from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, Role, free_port, programs
from telemetry.batch import Device, DictionaryEncoder, encode
from zmqbroker import protocol
from zmqbroker.client import Consumer
from zmqbroker.client.producing import ProducerConversation
from zmqbroker.sockets import receiver, sender

AGENTS: Final = (1_000, 5_000, 10_000)
ROWS: Final = 100
SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 3.0
DRIVERS: Final = 2


def run(settings: Settings) -> Iterator[Figure]:
    for agents in AGENTS:
        count = settings.scaled(agents, 10)
        rates, ratios, notes = [], [], []
        for _ in range(settings.runs):
            found = one_run(settings, count)
            rates.append(min(found["taken_rows_per_s"], found["consumed_rows_per_s"]))
            ratios.append(found["slowest_median_ms"] / found["median_ms"])
            notes.append(found)
        settings.notes[f"agents_{agents}"] = notes
        yield compare("fleet", f"agents_{agents}_rows_per_s", "rows/s", rates, "offered", [count * ROWS / 1.0])
        yield compare("fleet", f"agents_{agents}_ack_max_over_median", "ratio", ratios)


def batch() -> bytes:
    """100 rows of one host with eight GPUs, as an agent sends them."""
    devices = [Device(uuid=f"GPU-{i:032x}", hostname="host-1", gpu_index=str(i), model="H100") for i in range(8)]
    dictionary = DictionaryEncoder().encode(devices, [f"DCGM_FI_METRIC_{i}" for i in range(13)])
    i = np.arange(ROWS)
    return encode(1, 1, np.full(ROWS, 10**18), i % 8, i // 8, i * 0.5, dictionary, created_ns=0)


def one_run(settings: Settings, agents: int) -> dict[str, Any]:
    directory = settings.directory / "fleet"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    url = f"tcp://127.0.0.1:{free_port()}"
    with programs() as started:
        args = ["serve", "--data-dir", str(directory / "data"), "--bind", url, "--retention", "1s"]
        args += ["--admin-bind", f"tcp://127.0.0.1:{free_port()}"]
        broker = Program("broker", "zmqbroker.cli", args, directory, free_port())
        started.append(broker)
        broker.wait_ready()
        consumer = Role(discard, url, SECONDS)
        share = [agents // DRIVERS + (i < agents % DRIVERS) for i in range(DRIVERS)]
        drivers = [Role(drive, url, n, SECONDS, i) for i, n in enumerate(share)]
        roles = [consumer, *drivers]
        try:
            for role in roles:
                role.ready(120)
            cpu = broker.cpu_seconds()
            for role in roles:
                role.go()
            results = [driver.result(SECONDS + 60) for driver in drivers]
            cpu = broker.cpu_seconds() - cpu
            rss = psutil.Process(broker.popen.pid).memory_info().rss
            consumed = consumer.result(60)
        finally:
            for role in roles:
                role.end()
    shutil.rmtree(directory, ignore_errors=True)
    medians = [m for r in results for m in r["medians_ms"]]
    return {
        "agents": agents,
        "taken_rows_per_s": sum(r["acked"] for r in results) * ROWS / SECONDS,
        "consumed_rows_per_s": consumed,
        "median_ms": statistics.median(medians),
        "slowest_median_ms": max(medians),
        "p99_ms": max(r["p99_ms"] for r in results),
        "broker_cpu_cores": cpu / (SECONDS + SETTLE_SECONDS),
        "broker_rss_mb": rss / 1e6,
    }


def discard(go: Callable[[], None], url: str, seconds: float) -> float:
    """Receive, acknowledge, forget; rows a second within the measured time."""
    consumer = Consumer(url, "fleet", "discard", credit=4, max_bytes=8 << 20)
    go()
    rows = 0
    begin = time.monotonic() + SETTLE_SECONDS
    while (now := time.monotonic()) < begin + seconds:
        delivery = consumer.receive(begin + seconds - now)
        if delivery is not None:
            rows += delivery.rows if time.monotonic() >= begin else 0
            consumer.ack(delivery)
    consumer.close(2)
    return rows / seconds


class Agent:
    """One connected producer: its socket, its conversation, the times of what is not acked yet."""

    __slots__ = ("acks_s", "conversation", "published_s", "receive", "send", "socket")

    def __init__(self, context: zmq.Context[Any], url: str, number: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(url)
        self.send = sender(self.socket)
        self.receive = receiver(self.socket)
        rng = random.Random(number)
        self.conversation = ProducerConversation(rng.getrandbits(64), "fleet", incarnation=1, rng=rng)
        self.conversation.begin(time.monotonic())
        self.conversation.on_acked = self._acked
        self.published_s: dict[int, float] = {}
        self.acks_s: list[float] = []

    def flush(self, now: float) -> None:
        for message in self.conversation.outgoing(now):
            self.send(message)

    def drain(self, now: float) -> None:
        try:
            while True:
                frames = self.receive()
                self.conversation.receive(protocol.unpack(frames[0]), frames[1:], now)
        except zmq.Again:
            pass
        if self.conversation.to_send or not self.conversation.connected:
            self.flush(now)

    def _acked(self, first: int, last: int) -> None:
        now = time.monotonic()
        for seq in range(first, last + 1):
            at = self.published_s.pop(seq, None)
            if at is not None:
                self.acks_s.append(now - at)


def drive(go: Callable[[], None], url: str, count: int, seconds: float, number: int) -> dict[str, Any]:
    """Connect ``count`` agents, publish from each once a second, return acks in time and medians."""
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 10)
    payload = batch()
    crc = crc32c(payload)
    epoll = select.epoll()
    agents: dict[int, Agent] = {}
    for i in range(count):
        agent = Agent(context, url, number * 1_000_000 + i)
        fd = agent.socket.get(zmq.FD)
        agents[fd] = agent
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        if i % 200 == 199:
            _connect(epoll, agents, 0.05)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(a.conversation.connected for a in agents.values()):
        _connect(epoll, agents, 0.2)
    # Agents are processes of their own: a pass of the collector over thousands of them would be counted as their wait.
    gc.collect()
    gc.freeze()
    gc.disable()
    go()
    begin = time.monotonic()
    measured = begin + SETTLE_SECONDS
    end = measured + seconds
    rng = random.Random(number)
    due = [(begin + rng.random(), 0, fd) for fd in agents]
    heapq.heapify(due)
    acked_before: int | None = None
    while (now := time.monotonic()) < end:
        if acked_before is None and now >= measured:
            acked_before = sum(a.conversation.acked for a in agents.values())
            for agent in agents.values():
                agent.acks_s.clear()
        while due[0][0] <= now:
            _, second, fd = due[0]
            heapq.heapreplace(due, (begin + second + 1 + rng.random(), second + 1, fd))
            agent = agents[fd]
            agent.published_s[agent.conversation.add(payload, ROWS, crc)] = now
            agent.flush(now)
            # A send may have taken in what had come: the edge of the descriptor would then be missed.
            agent.drain(now)
        for fd, _ in epoll.poll(max(0.0, min(due[0][0], end) - time.monotonic()), 512):
            agents[fd].drain(now)
    acked = sum(a.conversation.acked for a in agents.values()) - (acked_before or 0)
    medians = [statistics.median(a.acks_s) * 1000 for a in agents.values() if a.acks_s]
    silent = count - len(medians)
    if silent:
        raise RuntimeError(f"{silent} agents were never acknowledged")
    for agent in agents.values():
        agent.socket.close(0)
    context.term()
    p99_ms = statistics.quantiles((s for a in agents.values() for s in a.acks_s), n=100)[98] * 1000
    return {"acked": acked, "medians_ms": medians, "p99_ms": p99_ms}


def _connect(epoll: select.epoll, agents: dict[int, Agent], seconds: float) -> None:
    """Let HELLOs be said and answered for a while."""
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        for fd, _ in epoll.poll(0.02, 512):
            agents[fd].drain(now)
    for agent in agents.values():
        if not agent.conversation.connected:
            agent.drain(now)
