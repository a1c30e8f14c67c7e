"""A real Prometheus scrapes the real processes, evaluates every rule, and fires one when its condition is made true."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.processes import RunningProcess, free_port
from tests.helpers.promql import metrics_of
from tests.helpers.tools import needed
from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer, Producer

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def prometheus_binary() -> str:
    return needed("prometheus", "prometheus")


class Prometheus:
    """What a running one answers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, query: str) -> list[dict[str, Any]]:
        return list(self.ask("query", query=query)["result"])

    def firing(self, name: str) -> list[dict[str, Any]]:
        alerts = self.ask("alerts")["alerts"]
        return [a for a in alerts if a["labels"]["alertname"] == name and a["state"] == "firing"]


@contextmanager
def running_prometheus(binary: str, directory: Path, targets: list[str]) -> Iterator[Prometheus]:
    """With the rules in ``directory``/rules, every second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "rules" / "*.yaml")],
        "scrape_configs": [{"job_name": "telemetry", "honor_labels": True, "static_configs": [{"targets": targets}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [binary, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def running_pipeline(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """One process of each kind: (address of the broker, what Prometheus scrapes)."""
    data, page = f"tcp://127.0.0.1:{free_port()}", ("--http", "127.0.0.1:0")
    with ExitStack() as stack:
        targets = []

        def start(module: str, *args: str) -> str:
            process = RunningProcess(module, [*args, *page], directory, name=f"{module}-{free_port()}")
            url = stack.enter_context(process).wait_ready()
            targets.append(url.removeprefix("http://"))
            return url

        store = start("clickhouse.cli", "serve", "--migrate", "--data-dir", str(directory / "store"))
        admin = ("--admin-bind", f"tcp://127.0.0.1:{free_port()}")
        start("zmqbroker.cli", "serve", "--data-dir", str(directory / "broker"), "--bind", data, *admin)
        start("consumers.cli", "--connect", data, "--clickhouse", store)
        start("clickhouse.cli", "rollup", "--url", store, "--interval", "1s")
        start("api.cli", "--connect", data, "--clickhouse", store)
        start(
            "producers.cli", "simulate", "--hosts", "1", "--connect", data, "--state-dir", str(directory / "streamer")
        )
        yield data, targets


def rules_in_seconds(source: Path, target: Path) -> set[str]:
    """The rules that are deployed, without their waiting times; returns the metrics that those of the pipeline ask for."""
    target.mkdir()
    asked: set[str] = set()
    recorded: set[str] = set()
    for path in source.glob("*.rules.yaml"):
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
                if path.name == "pipeline.rules.yaml":
                    asked |= set(metrics_of(rule["expr"]))
                    recorded |= {rule["record"]} if "record" in rule else set()
        (target / path.name).write_text(yaml.safe_dump(content))
    assert recorded <= asked | {"telemetry:published_rows:rate1m", "telemetry:stored_rows:rate1m"}
    return asked | recorded


def test_every_rule_finds_its_metrics_in_the_real_processes_and_an_alert_fires_when_its_condition_is_made_true(
    tmp_path: Path, root: Path, prometheus_binary: str
) -> None:
    asked = rules_in_seconds(root / "deploy" / "prometheus", tmp_path / "rules")
    with (
        running_pipeline(tmp_path / "logs") as (broker, targets),
        running_prometheus(prometheus_binary, tmp_path, targets) as prometheus,
    ):
        # A group that has seen a topic and left: it holds the log back, which is what the alert is about.
        with Producer(broker, topic="left") as producer:
            with Consumer(broker, topic="left", group="nobody", credit=0):
                producer.publish(b"x", rows=1).wait(30)
            producer.publish(b"x", rows=1).wait(30)
        [alert] = eventually(lambda: prometheus.firing("GroupWithoutMembers"), 60, "GroupWithoutMembers fires")
        assert (alert["labels"]["topic"], alert["labels"]["group"]) == ("left", "nobody")
        [lag] = eventually(lambda: prometheus.series('telemetry:lag_rows{group="nobody"}'), 30, "there is a recording")
        assert float(lag["value"][1]) == 2

        assert {t["health"] for t in prometheus.ask("targets")["activeTargets"]} <= {"up", "unknown"}

        def all_are_told() -> bool:
            missing = {name for name in asked if not prometheus.series(name)}
            assert not missing, "no process tells of these: what asks for them never fires"
            return True

        eventually(all_are_told, 60, "every metric and every recording has a series", pause=0.5)
        groups = prometheus.ask("rules")["groups"]
        broken = {r["name"]: r.get("lastError") for group in groups for r in group["rules"] if r["health"] == "err"}
        assert not broken
        assert sum(len(group["rules"]) for group in groups) >= 45
        assert not prometheus.firing("BrokerAbsent")
        assert not prometheus.firing("CollectorAbsent")
