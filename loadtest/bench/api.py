"""api: how many cacheable answers a second, and how long the usual questions take at 200 requests/s, on 100 M rows.

The store, telemetry-api and the load generator are processes of their own on the same machine. Rate: wrk, one thread,
32 connections, over the GPU list, one GPU and the metric list (answers at most a second old). Latency: Locust, as many
users as requests a second, who ask the four usual questions of GPUs and ranges at random, each at moments of chance
(arrivals are those of independent people, and a slow answer does not hold back the next question of another), counted
from when all are connected. Beside it, what an answer costs the two processes in CPU, and the time of the store's
smallest question: its floor. Baseline: the same server process around an empty Flask view with a 10 kB body. Deep
paging: median of a page of 10 rows by cursor, at the beginning of a GPU's rows and at page 10,000. Exports: 10 M rows
in each format, and how far the API's memory grows meanwhile.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import insert_devices, insert_samples
from clickhouse.rollup import Rollup
from loadtest.bench.fleet_rows import METRICS, Fleet
from loadtest.bench.frame import ROOT, Figure, Settings, compare
from loadtest.bench.processes import Program, free_port, programs

ROWS: Final = 100_000_000
GPUS: Final = 1_000
CONNECTIONS: Final = 32
RATES: Final = (50, 100, 200)
"""Requests a second, Locust's own CPU on the same cores included."""
BASELINE: Final = "the same server with an empty Flask view"
EXPORT_ROWS: Final = 10_000_000
PAGE_ROWS: Final = 10
DEEP_PAGE: Final = 10_000


def run(settings: Settings) -> Iterator[Figure]:
    """Rates, latencies, deep paging, exports."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed: apt-get install wrk")
    directory = settings.directory / "api"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    rows = settings.scaled(ROWS, 100_000)
    seconds = 6 if settings.scale >= 1 else 2
    with programs() as started:
        store_port, api_port, empty_port = free_port(), free_port(), free_port()
        store = f"http://127.0.0.1:{store_port}"
        arguments = ["serve", "--migrate", "--data-dir", str(directory / "store")]
        started.append(Program("store", "clickhouse.cli", arguments, directory, store_port))
        started[-1].wait_ready()
        gpu = _fill(store, rows)
        started.append(Program("api", "api.cli", ["--clickhouse", store], directory, api_port))
        api = started[-1]
        api.wait_ready()
        started.append(Program("empty", "loadtest.empty_view", [], directory, empty_port))
        started[-1].wait_ready()
        base, empty = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{empty_port}"
        yield from _rates(settings, directory, base, empty, gpu, seconds)
        with StoreConnection(StoreAddress(url=store)) as conn:
            yield compare("api", "store_floor_ms", "ms", [_median_ms(lambda: conn.query("SELECT 1"))])
        for rate in RATES:
            yield from _latencies(settings, directory, base, rate, seconds * 2, started[:2])
        yield from _deep_paging(base, gpu)
        yield from _exports(settings, base, api.process)
    shutil.rmtree(directory, ignore_errors=True)


def _fill(url: str, rows: int) -> str:
    """A fleet at 1 Hz up to now, rolled up and merged; the id of one GPU."""
    with StoreConnection(StoreAddress(url=url, timeout_s=3600)) as conn:
        begin_ms = time.time_ns() // 1_000_000 - rows // (GPUS * len(METRICS)) * 1000
        fleet = Fleet(GPUS, begin_ms)
        insert_devices(conn, fleet.devices)
        for number, columns in enumerate(fleet.deliveries(rows)):
            for day, part in columns.by_day():
                insert_samples(conn, part, token=f"api/{number}/{day}")
        Rollup(conn).look()
        conn.command("OPTIMIZE TABLE telemetry.samples FINAL", settings={"max_execution_time": 3600})
        return str(fleet.devices[0].gpu_id)


def _rates(settings: Settings, directory: Path, base: str, empty: str, gpu: str, seconds: int) -> Iterator[Figure]:
    paths = [
        "/api/v1/gpus?page_size=100",
        f"/api/v1/gpus/{gpu}",
        "/api/v1/metrics",
        "/api/v1/gpus?page=2&page_size=100",
    ]
    ours, theirs = [], []
    for _ in range(settings.runs):
        ours.append(_wrk(directory, base, paths, seconds))
        theirs.append(_wrk(directory, empty, ["/"], seconds))
    yield compare("api", "cacheable_rps", "requests/s", ours, BASELINE, theirs)


def _wrk(directory: Path, base: str, paths: list[str], seconds: int) -> float:
    script = directory / "paths.lua"
    listed = ", ".join(json.dumps(path) for path in paths)
    script.write_text(
        f"local paths = {{{listed}}}\nlocal n = 0\n"
        "request = function()\n  n = n + 1\n  return wrk.format('GET', paths[n % #paths + 1])\nend\n"
    )
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", str(script), base]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told:
        raise RuntimeError(f"wrk met failures: {told}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found, told
    return float(found[1])


def _latencies(
    settings: Settings, directory: Path, base: str, rate: int, seconds: int, parts: Sequence[Program]
) -> Iterator[Figure]:
    found: dict[str, list[tuple[float, float]]] = {}
    reached = []
    cpu_ms: dict[str, list[float]] = {part.name: [] for part in parts}
    for number in range(settings.runs):
        prefix = directory / f"locust-{rate}-{number}"
        command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "UsualQueries"]
        command += ["--headless", "--host", base, "-u", str(rate), "-r", str(rate), "-t", f"{seconds}s"]
        # As many connections at once are no part of the question.
        command += ["--reset-stats"]
        answers_before = _answers(base)
        before = [part.cpu_seconds() for part in parts]
        subprocess.run([*command, "--csv", str(prefix), "--only-summary"], capture_output=True, text=True, check=True)
        after = [part.cpu_seconds() for part in parts]
        answers = _answers(base) - answers_before
        with Path(f"{prefix}_stats.csv").open(newline="") as lines:
            for row in csv.DictReader(lines):
                name = "usual" if row["Name"] == "Aggregated" else re.sub(r"\W+", "_", row["Name"].lower())
                found.setdefault(name, []).append((float(row["50%"]), float(row["99%"])))
                if name == "usual":
                    reached.append(float(row["Requests/s"]))
                    for part, begin, end in zip(parts, before, after, strict=True):
                        cpu_ms[part.name].append(1000 * (end - begin) / answers)
                    if int(row["Failure Count"]):
                        raise RuntimeError(f"{row['Failure Count']} of Locust's requests failed")
    # The rate that is asked for has the plain names, the other ones say theirs.
    at = "" if rate == RATES[-1] else f"_at_{rate}"
    yield compare("api", f"usual_rate{at}", "requests/s", reached)
    for name, values in found.items():
        yield compare("api", f"{name}_p50{at}_ms", "ms", [p50 for p50, _ in values])
        yield compare("api", f"{name}_p99{at}_ms", "ms", [p99 for _, p99 in values])
    for name, costs in cpu_ms.items():
        yield compare("api", f"usual_{name}_cpu{at}_ms", "ms", costs)


def _answers(base: str) -> float:
    """How many requests the API has answered since its start."""
    with urllib.request.urlopen(f"{base}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("api_requests_total{"))


def _deep_paging(base: str, gpu: str) -> Iterator[Figure]:
    """A walk of pages would take long: the cursor of the deep page is taken from the page before it by number."""
    url = f"{base}/api/v1/gpus/{gpu}/telemetry?page_size={PAGE_ROWS}"
    first = _json(url)
    pages = min(DEEP_PAGE, first["total"] // PAGE_ROWS - 1)
    deep = _json(f"{url}&page={pages - 1}")["next_cursor"]
    shallow_ms = _median_ms(lambda: _json(f"{url}&cursor={first['next_cursor']}"))
    deep_ms = _median_ms(lambda: _json(f"{url}&cursor={deep}"))
    yield compare("api", f"cursor_page_{pages}_ms", "ms", [deep_ms], "page 1 by cursor", [shallow_ms])


def _median_ms(ask: Callable[[], Any]) -> float:
    took = []
    for _ in range(15):
        started = time.perf_counter()
        ask()
        took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took)


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _exports(settings: Settings, base: str, process: psutil.Process) -> Iterator[Figure]:
    rows = settings.scaled(EXPORT_ROWS, 100_000)
    newest = datetime.fromisoformat(_json(f"{base}/api/v1/stats")["store"]["newest"]).timestamp()
    start = newest - rows // (GPUS * len(METRICS))
    for name in ("csv", "ndjson", "arrow", "parquet"):
        before = process.memory_info().rss
        peak, size = before, 0
        started = time.perf_counter()
        url = f"{base}/api/v1/telemetry?format={name}&start_time={start:.3f}"
        with urllib.request.urlopen(url, timeout=600) as answer:
            while piece := answer.read(1 << 20):
                size += len(piece)
                peak = max(peak, process.memory_info().rss)
        took = time.perf_counter() - started
        settings.notes[f"export_{name}"] = {"bytes": size, "seconds": round(took, 2)}
        yield compare("api", f"export_{name}_rss_growth_mb", "MB", [(peak - before) / 1e6])
        yield compare("api", f"export_{name}_mb_per_s", "MB/s", [size / took / 1e6])
