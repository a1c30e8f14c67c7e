"""fleet: thousands of connected agents, each publishing 100 rows once a second, with a discarding consumer attached.

The agents are real protocol conversations over real TCP connections of their own (fleet_agent.py), many to a driver
process: an epoll loop instead of a thread and a ZeroMQ socket an agent, lest the drivers cost more than the broker.
Reported: rows taken and consumed a second, and the slowest agent's median ack time over the median of all, which says
whether credit and the loop are fair to each agent. Its baseline is what chance alone would make of it: the same waits,
dealt out to the agents at random.

An agent sends at a random moment of each second. At one and the same moment each second it would measure what else
happens then on two full cores that also drive the fleet: all agents of that moment, in both drivers, were slow alike.
What such moments cost shows in the p99 of all acks.
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
from itertools import islice
from typing import Any, Final

import numpy as np
import psutil
from crc32c import crc32c

from loadtest.bench.fleet_agent import Agent
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Role, programs, start_broker
from telemetry.batch import Device, DictionaryEncoder, encode
from zmqbroker.client import Consumer

AGENTS: Final = (1_000, 5_000, 10_000)
ROWS: Final = 100
SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 3.0
DRIVERS: Final = 2
BESIDE: Final = (
    ("ack_median_ms", "median_ms", "ms"),
    ("ack_slowest_ms", "slowest_median_ms", "ms"),
    ("ack_p99_ms", "p99_ms", "ms"),
    ("broker_cores", "broker_cpu_cores", "cores"),
    ("drivers_cores", "drivers_cpu_cores", "cores"),
    ("idle_cores", "idle_cores", "cores"),
    ("broker_rss_mb", "broker_rss_mb", "MB"),
)
"""What is reported beside the two figures: metric, its name in the notes, unit."""


def run(settings: Settings) -> Iterator[Figure]:
    for agents in AGENTS:
        count = settings.scaled(agents, 10)
        found = [one_run(settings, count) for _ in range(settings.runs)]
        settings.notes[f"agents_{agents}"] = found
        rates = [min(f["taken_rows_per_s"], f["consumed_rows_per_s"]) for f in found]
        yield compare("fleet", f"agents_{agents}_rows_per_s", "rows/s", rates, "offered", [count * ROWS / 1.0])
        ratios = [f["slowest_median_ms"] / f["median_ms"] for f in found]
        by_chance = [f["slowest_median_by_chance_ms"] / f["median_ms"] for f in found]
        yield compare("fleet", f"agents_{agents}_ack_max_over_median", "ratio", ratios, "by chance", by_chance)
        for metric, note, unit in BESIDE:
            yield compare("fleet", f"agents_{agents}_{metric}", unit, [f[note] for f in found])


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
    with programs() as started:
        broker, url = start_broker(started, directory, "--retention", "1s")
        broker.wait_ready()
        consumer = Role(discard, url, SECONDS)
        share = [agents // DRIVERS + (i < agents % DRIVERS) for i in range(DRIVERS)]
        drivers = [Role(drive, url, n, SECONDS, i) for i, n in enumerate(share)]
        roles = [consumer, *drivers]
        try:
            for role in roles:
                role.ready(120)
            cpu, idle = broker.cpu_seconds(), psutil.cpu_times().idle
            for role in roles:
                role.go()
            results = [driver.result(SECONDS + 60) for driver in drivers]
            cpu, idle = broker.cpu_seconds() - cpu, psutil.cpu_times().idle - idle
            rss = psutil.Process(broker.popen.pid).memory_info().rss
            consumed = consumer.result(60)
        finally:
            for role in roles:
                role.end()
    shutil.rmtree(directory, ignore_errors=True)
    waits = [waits for r in results for waits in r["acks_s"]]
    medians = [statistics.median(w) * 1000 for w in waits]
    return {
        "agents": agents,
        "taken_rows_per_s": sum(r["acked"] for r in results) * ROWS / SECONDS,
        "consumed_rows_per_s": consumed,
        "median_ms": statistics.median(medians),
        "slowest_median_ms": max(medians),
        "slowest_median_by_chance_ms": max(dealt_at_random(waits)),
        "p99_ms": statistics.quantiles((s for w in waits for s in w), n=100)[98] * 1000,
        "broker_cpu_cores": cpu / (SECONDS + SETTLE_SECONDS),
        "drivers_cpu_cores": sum(r["cpu_cores"] for r in results),
        "idle_cores": idle / (SECONDS + SETTLE_SECONDS),
        "broker_rss_mb": rss / 1e6,
    }


def dealt_at_random(waits: list[list[float]]) -> list[float]:
    """Medians in ms of agents that share the same waits at random: how slow chance alone makes the slowest."""
    deck = [wait for of_one in waits for wait in of_one]
    random.Random(0).shuffle(deck)
    cards = iter(deck)
    return [statistics.median(islice(cards, len(of_one))) * 1000 for of_one in waits]


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


def connect(url: str, count: int, number: int) -> tuple[select.epoll, dict[int, Agent]]:
    """Agents of driver ``number`` that have been welcomed, by file descriptor; or not all of them, after a minute."""
    epoll = select.epoll()
    agents: dict[int, Agent] = {}
    for i in range(count):
        agent = Agent(url, random.Random(number * 1_000_000 + i), time.monotonic())
        agents[agent.fileno] = agent
        epoll.register(agent.fileno, select.EPOLLIN)
        while i % 200 == 199 and _take(epoll, agents, 0.05):
            pass
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(a.conversation.connected for a in agents.values()):
        if not _take(epoll, agents, 0.2):
            for agent in agents.values():
                agent.flush(time.monotonic())
    return epoll, agents


def drive(go: Callable[[], None], url: str, count: int, seconds: float, number: int) -> dict[str, Any]:
    """Connect ``count`` agents, publish from each once a second; acks in the measured time, and how long they took."""
    payload = batch()
    crc = crc32c(payload)
    epoll, agents = connect(url, count, number)
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
    acked_before = cpu_before = None
    while (now := time.monotonic()) < end:
        if acked_before is None and now >= measured:
            acked_before, cpu_before = _acked(agents), time.process_time()
            for agent in agents.values():
                agent.acks_s.clear()
        while due[0][0] <= now:
            _, second, fd = due[0]
            heapq.heapreplace(due, (begin + second + 1 + rng.random(), second + 1, fd))
            agents[fd].publish(payload, ROWS, crc, time.monotonic())
        _take(epoll, agents, max(0.0, min(due[0][0], end) - time.monotonic()))
    acked, cpu = _acked(agents) - (acked_before or 0), time.process_time() - (cpu_before or 0.0)
    for agent in agents.values():
        agent.close()
    silent = sum(not a.acks_s for a in agents.values())
    if silent:
        raise RuntimeError(f"{silent} agents were never acknowledged")
    return {"acked": acked, "acks_s": [a.acks_s for a in agents.values()], "cpu_cores": cpu / seconds}


def _acked(agents: dict[int, Agent]) -> int:
    return sum(a.conversation.acked for a in agents.values())


def _take(epoll: select.epoll, agents: dict[int, Agent], wait_s: float) -> int:
    """Take in what has come, or comes first within the time; from how many agents something came."""
    ready = epoll.poll(wait_s, 512)
    now = time.monotonic()  # what is read below had come by now, however long reading it takes
    for fd, _ in ready:
        agents[fd].take(now)
    return len(ready)
