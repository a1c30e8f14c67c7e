"""Load on the API as its users make it: a dashboard that polls, a script that pages, an exporter, a writer.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8080 -u 50 -r 10 -t 60s

Thresholds are read from loadtest/thresholds.json; the exit code is 1 if one is not kept. ``UsualQueries`` alone asks
the four usual questions once a second a user, at moments of chance, which the ``api`` benchmark uses.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, constant, constant_throughput, events, task

THRESHOLDS = Path(__file__).parent / "thresholds.json"
HEADERS = {"X-API-Key": os.environ["API_KEY"]} if os.environ.get("API_KEY") else {}

gpu_ids: list[str] = []
hosts: list[str] = []


@events.test_start.add_listener
def learn_the_fleet(environment: Any, **_: Any) -> None:
    """Ask once which GPUs and hosts there are, so that requests are spread over them."""
    from urllib.request import Request, urlopen

    with urlopen(Request(f"{environment.host}/api/v1/gpus?page_size=1000", headers=HEADERS), timeout=30) as answer:
        for gpu in json.load(answer)["gpus"]:
            gpu_ids.append(gpu["id"])
            hosts.append(gpu["hostname"])
    if not gpu_ids:
        raise SystemExit("the API knows no GPU: nothing can be asked")


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    """Compare with the thresholds; the exit code tells."""
    if not os.environ.get("LOAD_THRESHOLDS"):
        return
    total = environment.stats.total
    limits = json.loads(THRESHOLDS.read_text())
    measured = {
        "failure_ratio_max": total.fail_ratio,
        "p50_ms_max": total.get_response_time_percentile(0.5) or 0,
        "p99_ms_max": total.get_response_time_percentile(0.99) or 0,
    }
    broken = [
        f"{name}: {measured[name]:g} above {limits[name]:g}" for name in measured if measured[name] > limits[name]
    ]
    for line in broken:
        print(f"threshold broken: {line}")
    environment.process_exit_code = 1 if broken else 0


class ApiUser(FastHttpUser):
    """What all have in common."""

    abstract = True

    def ask(self, path: str, name: str) -> None:
        self.client.get(path, name=name, headers=HEADERS)


class UsualQueries(ApiUser):
    """The four usual questions, as many independent people ask them: once a second each, at moments of chance.

    At a fixed interval a hold-up that several users met would make them ask together ever after: a load of bursts.
    """

    def on_start(self) -> None:
        # Locust starts users together.
        self._due = time.monotonic()
        time.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Until the next question. It was due at its time, however long the last one took: slowness sheds no load."""
        self._due += random.expovariate(1.0)
        return max(0.0, self._due - time.monotonic())

    @task
    def gpu_list_page(self) -> None:
        self.ask(f"/api/v1/gpus?page_size=100&page={random.randint(1, 5)}", "gpu list page")

    @task
    def latest_of_one_gpu(self) -> None:
        self.ask(f"/api/v1/gpus/{random.choice(gpu_ids)}", "latest of one GPU")

    @task
    def hundred_rows(self) -> None:
        self.ask(f"/api/v1/gpus/{random.choice(gpu_ids)}/telemetry?page_size=100&start_time=now-1h", "100 rows")

    @task
    def series_of_500_points(self) -> None:
        path = f"/api/v1/gpus/{random.choice(gpu_ids)}/series?metric_name=DCGM_FI_DEV_GPU_TEMP&max_points=500"
        self.ask(f"{path}&start_time=now-{random.choice(('1h', '2h', '3h'))}", "series of 500 points")


class DashboardUser(ApiUser):
    """Somebody with the fleet page open, who looks at a GPU now and then."""

    weight = 10
    wait_time = constant(2)

    @task(5)
    def fleet(self) -> None:
        self.ask("/api/v1/fleet", "dashboard: fleet")

    @task(2)
    def alerts(self) -> None:
        self.ask("/api/v1/alerts", "dashboard: alerts")

    @task(2)
    def pipeline(self) -> None:
        self.ask("/api/v1/stats", "dashboard: stats")

    @task(1)
    def gpu_page(self) -> None:
        gpu = random.choice(gpu_ids)
        self.ask(f"/api/v1/gpus/{gpu}", "dashboard: GPU")
        for metric in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE"):
            self.ask(f"/api/v1/gpus/{gpu}/series?metric_name={metric}", "dashboard: series")

    @task(1)
    def host_page(self) -> None:
        self.ask(f"/api/v1/hosts/{random.choice(hosts)}", "dashboard: host")


class ScriptUser(ApiUser):
    """A script that walks a GPU's last hour by cursor."""

    weight = 3
    wait_time = between(1, 5)

    @task
    def walk(self) -> None:
        path = f"/api/v1/gpus/{random.choice(gpu_ids)}/telemetry?page_size=1000&start_time=now-1h"
        cursor = ""
        for _ in range(5):
            with self.client.get(
                path + (f"&cursor={cursor}" if cursor else ""),
                name="script: page",
                headers=HEADERS,
                catch_response=True,
            ) as answer:
                cursor = (answer.json() or {}).get("next_cursor") if answer.status_code == 200 else None
            if not cursor:
                return


class ExporterUser(ApiUser):
    """Prometheus, and somebody who exports a slice as CSV."""

    weight = 1
    wait_time = constant(15)

    @task(4)
    def scrape(self) -> None:
        self.ask("/metrics", "exporter: metrics")

    @task(1)
    def export(self) -> None:
        host = random.choice(hosts)
        self.ask(f"/api/v1/telemetry?format=csv&hostname={host}&start_time=now-1m", "exporter: CSV of a minute")


class WriterUser(ApiUser):
    """An agent that writes 100 samples a second as JSON."""

    weight = 2
    wait_time = constant_throughput(1)

    @task
    def write(self) -> None:
        body = [
            {"metric_name": "DCGM_FI_DEV_GPU_TEMP", "value": random.randint(30, 80), "gpu_id": f"LOAD-{number}"}
            for number in range(100)
        ]
        self.client.post("/api/v1/telemetry", json=body, name="writer: 100 samples", headers=HEADERS)
