"""pipeline: a CSV file to rows that a query sees, all processes real.

The file is made by the simulator (distinct rows). The clock starts when the streamer's process is launched and stops
when ``count()`` in ClickHouse says that every row is there (the fleet's blank values among the rejected rows).
Baseline: what two of its parts alone would allow, cores / (CPU seconds a row of the streamer parsing and packing
without sending + of inserting prepared blocks without a pipeline). The ratio tells how much of the machine the way
between them costs.
"""

from __future__ import annotations

import os
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from clickhouse.cli import COMMAND_LINE
from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import SampleColumns, insert_samples
from loadtest.bench.fleet_file import fleet_csv
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, Role, free_port, programs

BASELINE: Final = "cores / (CPU a row of parse-only + insert-only)"
ROWS: Final = 2_000_000
INSERT_ROWS: Final = 250_000
INSERTS: Final = 8
RUN_TIMEOUT_S: Final = 600.0
POLL_S: Final = 0.1
"""How often the store is asked whether all is there: more often would measure the question."""


def run(settings: Settings) -> Iterator[Figure]:
    """One figure."""
    path, rows = fleet_csv(settings, ROWS)
    rates, bounds = [], []
    for _ in range(settings.runs):
        parse, insert = parse_cpu_s(settings, path) / rows, insert_cpu_s(settings)
        bounds.append((os.cpu_count() or 1) / (parse + insert))
        seconds, cpu = whole(settings, path, rows)
        rates.append(rows / seconds)
        settings.notes.setdefault("runs", []).append(
            {
                "rows": rows,
                "seconds": round(seconds, 3),
                "cpu_us_a_row": {name: round(1e6 * used / rows, 3) for name, used in cpu.items()},
                "parse_only_us_a_row": round(1e6 * parse, 3),
                "insert_only_us_a_row": round(1e6 * insert, 3),
            }
        )
    yield compare("pipeline", "rows_per_s", "rows/s", rates, BASELINE, bounds)


class Services:
    """Store, broker and two collectors, as ``make services`` starts them, on free ports."""

    def __init__(self, started: list[Program], directory: Path, *, only_store: bool = False) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._started = started
        self._directory = directory
        port = free_port()
        self.store = f"http://127.0.0.1:{port}"
        self.start("store", "clickhouse.cli", ["serve", "--migrate", "--data-dir", str(directory / "store")], port)
        if only_store:
            return
        self.broker = f"tcp://127.0.0.1:{free_port()}"
        args = ["serve", "--data-dir", str(directory / "broker"), "--bind", self.broker]
        self.start("broker", "zmqbroker.cli", [*args, "--admin-bind", f"tcp://127.0.0.1:{free_port()}"], free_port())
        for name in ("collector-1", "collector-2"):
            args = ["--connect", self.broker, "--clickhouse", self.store]
            self.start(name, "consumers.cli", args, free_port())
        if "rollup" in COMMAND_LINE.commands:
            self.start("rollup", "clickhouse.cli", ["rollup", "--url", self.store], free_port())

    def start(self, name: str, module: str, args: list[str], port: int) -> Program:
        program = Program(name, module, args, self._directory, port)
        self._started.append(program)
        program.wait_ready()
        return program

    def ask(self, query: str) -> str:
        """The answer of the store as text."""
        url = f"{self.store}/?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return str(answer.read().decode().strip())

    def rows(self) -> int:
        """Rows that a query sees: the fleet's occasional blank values are in ``rejects``, by reason."""
        return int(self.ask("SELECT (SELECT count() FROM telemetry.samples) + (SELECT count() FROM telemetry.rejects)"))


def whole(settings: Settings, path: Path, rows: int) -> tuple[float, dict[str, float]]:
    """Seconds until every row is queryable, and CPU seconds by process meanwhile."""
    directory = settings.directory / "pipeline"
    with programs() as started:
        services = Services(started, directory)
        before = {program.name: program.cpu_seconds() for program in started}
        begun = time.monotonic()
        args = ["csv", str(path), "--timestamps", "shift", "--connect", services.broker]
        streamer = Program("streamer", "producers.cli", [*args, "--state-dir", str(directory)], directory, free_port())
        started.append(streamer)
        while services.rows() < rows:
            if time.monotonic() - begun > RUN_TIMEOUT_S:
                raise RuntimeError(f"not every row arrived within {RUN_TIMEOUT_S} s")
            time.sleep(POLL_S)
        seconds = time.monotonic() - begun
        streamer.finish(60)
        cpu = {program.name: program.cpu_seconds() - before.get(program.name, 0.0) for program in started}
        doubled = services.ask("SELECT count() - uniqExact(gpu, metric, ts) FROM telemetry.samples")
        if services.rows() != rows or doubled != "0":
            raise RuntimeError(f"{rows} distinct rows were sent, {services.rows()} stored, {doubled} of them twice")
    shutil.rmtree(directory, ignore_errors=True)
    return seconds, cpu


class Discard:
    """A producer that packs each batch and throws it away: stands in for the broker's client."""

    def __init__(self, url: str, topic: str = "", *, session: int | None = None, first_seq: int = 1, **_: Any) -> None:
        self.session = session or 1
        self.next_seq = first_seq
        self._rows = 0

    def publish(self, payload: bytes | Callable[[int, int], bytes], rows: int = 1, *_: Any, **__: Any) -> _Done:
        if callable(payload):
            payload(self.session, self.next_seq)
        self._rows += rows
        self.next_seq += 1
        return _Done(self.next_seq - 1)

    def flush(self, timeout: float | None = None) -> bool:
        return True

    def close(self, timeout: float | None = None) -> int:
        return 0

    @property
    def stats(self) -> Any:
        from zmqbroker.client.producer import ProducerStats

        sent = self.next_seq - 1
        return ProducerStats(sent, sent, self._rows, self._rows, 0, 0, 0, 0, 0.0, 0, True)


class _Done:
    """A receipt of what is done."""

    done = True

    def __init__(self, seq: int) -> None:
        self.seq = seq

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def add_done_callback(self, call: Callable[[_Done], None]) -> None:
        call(self)


def parse_cpu_s(settings: Settings, path: Path) -> float:
    """CPU seconds of the streamer over the file when nothing is sent."""
    directory = settings.directory / "parse"
    directory.mkdir(parents=True, exist_ok=True)
    args = ["csv", str(path), "--timestamps", "shift", "--state-dir", str(directory)]
    program = Program(
        "parse", "producers.cli", [*args, "--producer", "loadtest.bench.pipeline:Discard"], directory, free_port()
    )
    try:
        program.finish(RUN_TIMEOUT_S)
    finally:
        program.end()
    return program.cpu_seconds()


def insert_cpu_s(settings: Settings) -> float:
    """CPU seconds a row of store and client when prepared blocks are inserted one after another."""
    with programs() as started:
        services = Services(started, settings.directory / "insert", only_store=True)
        inserter = Role(insert_blocks, services.store)
        try:
            inserter.ready()
            before = started[0].cpu_seconds()
            inserter.go()
            client = inserter.result(RUN_TIMEOUT_S)
            return float(client + started[0].cpu_seconds() - before) / (INSERTS * INSERT_ROWS)
        finally:
            inserter.end()


def insert_blocks(go: Callable[[], None], url: str) -> float:
    """Insert; returns the CPU seconds of this process."""
    now_ms = time.time_ns() // 1_000_000 // 86_400_000 * 86_400_000
    blocks = [plausible_block(now_ms + block * 100_000, block) for block in range(INSERTS)]
    with StoreConnection(StoreAddress(url=url)) as conn:
        go()
        before = time.process_time()
        for number, columns in enumerate(blocks):
            insert_samples(conn, columns, token=f"bench-{number}")
        return time.process_time() - before


def plausible_block(start_ms: int, seed: int) -> SampleColumns:
    """Rows as a collector makes them: batches of 20,000, each a few seconds of many GPUs with ten metrics."""
    random = np.random.default_rng(seed)
    row = np.arange(INSERT_ROWS)
    gpu = np.sort(random.integers(0, 2**63, 2500, dtype=np.uint64))[row // 10 % 2500]
    return SampleColumns(
        gpu=gpu,
        labels=gpu ^ np.uint64(0xFFFF),
        metric_code=(row % 10).astype(np.uint8),
        metric_names=[f"DCGM_FI_BENCH_{i}" for i in range(10)],
        ts_ms=start_ms + row // 25_000 * 1000,
        value=np.round(random.normal(50, 20, INSERT_ROWS)),
        session=np.full(INSERT_ROWS, 7, dtype=np.uint64),
        seq=(row // 20_000).astype(np.uint64),
    )
