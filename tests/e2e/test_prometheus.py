"""A real Prometheus scrapes the real processes, evaluates every rule, and fires one when its condition is made true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.processes import RunningProcess, free_port
from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer, Producer

PROMETHEUS = shutil.which("prometheus")


@pytest.fixture
def prometheus_binary() -> str:
    if PROMETHEUS is None:
        if os.environ.get("CI"):
            pytest.fail("prometheus is not installed; .ci/packages names it")
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    return PROMETHEUS


def ask(port: int, path: str, **parameters: str) -> Any:
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def test_every_rule_is_evaluated_and_an_alert_fires_when_its_condition_is_made_true(
    tmp_path: Path, root: Path, prometheus_binary: str
) -> None:
    url, http, admin = f"tcp://127.0.0.1:{free_port()}", free_port(), free_port()
    rules = tmp_path / "rules"
    rules.mkdir()
    for path in (root / "deploy" / "prometheus").glob("*.rules.yaml"):
        # Waiting times and pauses between looks are cut short; the expressions are those that are deployed.
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
        (rules / path.name).write_text(yaml.safe_dump(content))
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules / "*.yaml")],
                "scrape_configs": [{"job_name": "t", "static_configs": [{"targets": [f"127.0.0.1:{http}"]}]}],
            }
        )
    )
    broker_args = ["serve", "--data-dir", str(tmp_path / "data"), "--bind", url, "--http", f"127.0.0.1:{http}"]
    broker_args += ["--admin-bind", f"tcp://127.0.0.1:{admin}"]
    with RunningProcess("zmqbroker.cli", broker_args, tmp_path / "logs") as broker:
        broker.wait_ready()
        # A group that has seen the topic and left: it holds the log back, which is what the alert is about.
        with Producer(url) as producer:
            with Consumer(url, credit=0):
                producer.publish(b"x", rows=1).wait(10)
            producer.publish(b"x", rows=1).wait(10)
        command = [
            prometheus_binary,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/tsdb",
        ]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:

            def fired() -> Any:
                try:
                    alerts = ask(port, "alerts")["alerts"]
                except OSError:
                    return None
                return [
                    a for a in alerts if a["labels"]["alertname"] == "GroupWithoutMembers" and a["state"] == "firing"
                ]

            [alert] = eventually(fired, timeout=60, what="GroupWithoutMembers fires")
            assert alert["labels"]["group"] == "clickhouse"
            groups = ask(port, "rules")["groups"]
            broken = {
                rule["name"]: rule.get("lastError")
                for group in groups
                for rule in group["rules"]
                if rule["health"] == "err"
            }
            assert not broken
            assert sum(len(group["rules"]) for group in groups) >= 45
            lag = eventually(
                lambda: ask(port, "query", query='telemetry:lag_rows{group="clickhouse"}')["result"],
                timeout=20,
                what="the recording rule has a value",
            )
            assert float(lag[0]["value"][1]) == 2
        finally:
            process.terminate()
            process.wait(20)
