"""recovery: how long a broker takes from its start until it is ready, with 2 GB in a log whose end a kill -9 made.

Only the active segment is scanned; of sealed ones the footer is read. The baseline is a start on an empty directory:
the interpreter, the imports, a log that is made. What was acknowledged is counted afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, free_port, programs
from zmqbroker.client import Producer

LOG_BYTES: Final = 2_000_000_000
BATCH_BYTES: Final = 20_000
ROWS: Final = 1_000
DISTINCT: Final = 100


def run(settings: Settings) -> Iterator[Figure]:
    directory = settings.directory / "recovery"
    batches = settings.scaled(LOG_BYTES, 10 * BATCH_BYTES) // BATCH_BYTES
    recovered, empty = [], []
    try:
        for _ in range(settings.runs):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            empty.append(_start(directory, 0))
            _fill_and_kill(directory, batches)
            recovered.append(_start(directory, batches))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    yield compare("recovery", "after_kill_2GB_s", "s", recovered, "the same on an empty directory", empty)


def _broker(directory: Path, url: str, http_port: int) -> Program:
    args = ["serve", "--data-dir", str(directory / "data"), "--bind", url, "--disk-max", "100GiB"]
    args += ["--admin-bind", f"tcp://127.0.0.1:{free_port()}"]
    return Program("broker", "zmqbroker.cli", args, directory, http_port)


def _fill_and_kill(directory: Path, batches: int) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with programs() as started:
        broker = _broker(directory, url, free_port())
        started.append(broker)
        broker.wait_ready()
        payloads = [os.urandom(BATCH_BYTES) for _ in range(DISTINCT)]
        with Producer(url, "recovery", buffer_bytes=16 << 20) as producer:
            for i in range(batches):
                producer.publish(payloads[i % DISTINCT], ROWS)
            if not producer.flush(60):
                raise RuntimeError("the broker did not take everything within a minute")
            broker.popen.kill()


def _start(directory: Path, batches: int) -> float:
    """Seconds until a broker on the directory is ready; RuntimeError where it does not hold what was acknowledged."""
    http_port = free_port()
    with programs() as started:
        begin = time.monotonic()
        broker = _broker(directory, f"tcp://127.0.0.1:{free_port()}", http_port)
        started.append(broker)
        broker.wait_ready()
        seconds = time.monotonic() - begin
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/stats", timeout=10) as answer:
            topics = json.load(answer)["topics"]
        held = topics["recovery"]["messages"] if "recovery" in topics else 0
        if held != batches:
            raise RuntimeError(f"{batches} batches were acknowledged, {held} are there")
    return seconds
