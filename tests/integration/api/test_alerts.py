"""Alert rules against stored samples: each kind fires for what it is meant for, and for nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import promql_parser
import pytest
import yaml

from api.alerts.evaluate import Evaluator, Firing
from api.alerts.manager import Alerts
from api.alerts.prometheus import rules_file
from api.alerts.rules import load
from api.directory import Directory
from api.errors import Problem
from clickhouse import insert
from clickhouse.client import StorePool, connect
from telemetry.batch import Device
from telemetry.options import UsageError
from tests.helpers.api import app_on, pool
from tests.helpers.processes import RunningProcess

MINUTE = 60_000


class Story:
    """GPUs by name, each with the samples that its story needs, up to the present of the test."""

    def __init__(self, url: str, now_ms: int) -> None:
        self.url = url
        self.now_ms = now_ms
        self.count = 0

    def tell(
        self,
        name: str,
        host: str,
        metric: str,
        values: list[float],
        *,
        minutes: float,
        ago: float = 0,
        pod: str = "",
        driver: str = "535.1",
    ) -> None:
        """``values`` evenly over the last ``minutes``, ending ``ago`` minutes before now."""
        device = Device(
            uuid=name, hostname=host, gpu_index="0", pod=pod, namespace="ml" if pod else "",
            labels=(("DCGM_FI_DRIVER_VERSION", driver),),
        )  # fmt: skip
        end = self.now_ms - int(ago * MINUTE)
        ts = np.linspace(end - minutes * MINUTE, end, len(values)).astype(np.int64)
        self.count += 1
        n = len(values)
        with connect(self.url) as conn:
            insert.insert_devices(conn, [device])
            columns = insert.SampleColumns(
                np.full(n, device.gpu_key, np.uint64), np.full(n, device.labels_key, np.uint64), np.zeros(n, np.uint16),
                [metric], ts, np.array(values, float), np.full(n, 1, np.uint64), np.full(n, self.count, np.uint64),
            )  # fmt: skip
            for day, part in columns.by_day():
                insert.insert_samples(conn, part, token=f"story-{self.count}-{day}")


TEMP, UTIL, XID = "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_XID_ERRORS"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    import time

    directory = tmp_path_factory.mktemp("alert-store")
    arguments = ["serve", "--data-dir", str(directory / "data"), "--http", "127.0.0.1:0"]
    with RunningProcess("clickhouse.cli", arguments, directory, name="store") as process:
        url = process.http(30)
        migrate = RunningProcess("clickhouse.cli", ["migrate", "--url", url], directory, name="migrate")
        assert migrate.popen.wait(60) == 0
        s = Story(url, int(time.time() * 1000))
        s.tell("cool", "h1", TEMP, [60.0] * 60, minutes=10)
        s.tell("hot", "h1", TEMP, [88.0] * 60, minutes=10)
        s.tell("hot-for-a-moment", "h1", TEMP, [60.0] * 59 + [88.0], minutes=10)
        s.tell("hot-and-new", "h1", TEMP, [88.0] * 6, minutes=1)
        s.tell("burning", "h1", TEMP, [95.0] * 60, minutes=10)
        s.tell("throttled", "h1", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", [float(0x40 | 0x4)] * 60, minutes=11)
        s.tell("capped-only", "h1", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", [4.0] * 60, minutes=11)
        s.tell("old-dbe", "h1", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", [3.0] * 20, minutes=4)
        s.tell("new-dbe", "h1", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", [3.0] * 10 + [4.0] * 10, minutes=4)
        s.tell("reset-dbe", "h1", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", [3.0] * 10 + [0.0] * 10, minutes=4)
        s.tell("xid79", "h1", XID, [0.0, 0, 79, 79], minutes=3)
        s.tell("xid-unknown", "h1", XID, [0.0, 0, 777], minutes=3)
        s.tell("xid-long-ago", "h1", XID, [79.0] * 120, minutes=119)
        s.tell("held-idle", "h1", UTIL, [0.0] * 60, minutes=31, pod="sleepy")
        s.tell("free-idle", "h1", UTIL, [0.0] * 60, minutes=31)
        s.tell("held-busy", "h1", UTIL, [0.0] * 59 + [90.0], minutes=31, pod="busy")
        for number in range(5):
            mean = 0.2 if number == 4 else 0.9
            s.tell(f"job-{number}", "h1", "DCGM_FI_PROF_SM_ACTIVE", [mean] * 30, minutes=9, pod=f"train-{number}")
        s.tell("remap-failed", "h1", "DCGM_FI_DEV_ROW_REMAP_FAILURE", [0.0, 0, 1], minutes=0.5)
        s.tell("silent", "h1", TEMP, [60.0] * 10, minutes=5, ago=10, driver="550.2")
        s.tell("gone", "h2", TEMP, [60.0] * 10, minutes=5, ago=10)
        yield s


@pytest.fixture(scope="module")
def store(story: Story) -> Iterator[StorePool]:
    with pool(story.url) as found:
        yield found


def evaluator(store: StorePool, story: Story, numbers: dict[str, float] | None = None) -> Evaluator:
    directory = Directory(store, clock=lambda: story.now_ms / 1000)
    return Evaluator(store, directory, load(), lambda: numbers or {})


@pytest.fixture(scope="module")
def firing(store: StorePool, story: Story) -> list[Firing]:
    return evaluator(store, story, {"dead": 3, "lag_seconds": 5}).evaluate()[0]


@pytest.mark.parametrize(
    ("rule", "gpus"),
    [
        ("TempHigh", {"hot", "burning"}),
        ("TempCritical", {"burning"}),
        ("Throttled", {"throttled"}),
        ("EccDoubleBit", {"new-dbe"}),
        ("XidCritical", {"xid79"}),
        ("XidWarning", {"xid-unknown"}),
        ("IdleButAllocated", {"held-idle"}),
        ("Straggler", {"job-4"}),
        ("RowRemapFailed", {"remap-failed"}),
        ("GpuMissing", {"silent"}),
    ],
)
def test_a_rule_fires_for_the_gpus_it_is_meant_for_and_no_other(
    firing: list[Firing], rule: str, gpus: set[str]
) -> None:
    assert {one.gpu_id for one in firing if one.rule.name == rule} == gpus


def test_a_host_that_is_gone_is_one_alert_and_not_one_a_gpu(firing: list[Firing]) -> None:
    (one,) = [one for one in firing if one.rule.name == "NoData"]
    assert (one.hostname, one.gpu_id, one.values["gpus"]) == ("h2", "", 1)


def test_the_evidence_is_what_was_measured(firing: list[Firing]) -> None:
    by_gpu = {(one.rule.name, one.gpu_id): one for one in firing}
    assert by_gpu["TempHigh", "hot"].values == {
        "last": 88.0,
        "min": 88.0,
        "max": 88.0,
        "samples": by_gpu["TempHigh", "hot"].values["samples"],
    }
    assert by_gpu["XidCritical", "xid79"].values["codes"] == [79]
    assert "reboot" in by_gpu["XidCritical", "xid79"].action
    assert by_gpu["Straggler", "job-4"].values == {
        "mean": pytest.approx(0.2), "median": pytest.approx(0.9), "job": "ml/train", "gpus": 5
    }  # fmt: skip
    skew = next(one for one in firing if one.rule.name == "DriverSkew")
    assert skew.values["gpus_by_value"]["550.2"] == 1


def test_the_pipelines_own_numbers_fire_too(firing: list[Firing]) -> None:
    rules = {one.rule.name: one.values for one in firing}
    assert rules["DeadRows"] == {"dead": 3}
    assert "PipelineLag" not in rules


def test_a_rule_that_cannot_fire_is_named(store: StorePool, story: Story) -> None:
    """An alert on a metric that nothing exports would be silent for ever."""
    _, warnings = evaluator(store, story).evaluate()
    assert any(text.startswith("HbmTempHigh cannot fire") for text in warnings)
    assert not any(text.startswith("TempHigh") for text in warnings)
    assert not any(text.startswith("IdleButAllocated") for text in warnings), "one of its metrics is there"


def test_alerts_are_listed_silenced_and_come_back(story: Story, store: StorePool, tmp_path: Path) -> None:
    client = app_on(store, state_dir=tmp_path).test_client()
    answer = client.get("/api/v1/alerts?gpu_id=burning").get_json()
    assert [alert["rule"] for alert in answer["alerts"]] == ["TempCritical", "TempHigh"]
    alert = answer["alerts"][0]
    assert alert["state"] == "firing"
    silenced = client.post(f"/api/v1/alerts/{alert['id']}/silence", json={"duration": "2h", "comment": "known"})
    assert silenced.status_code == 200
    assert silenced.get_json()["silence"]["comment"] == "known"
    assert client.get("/api/v1/alerts?state=silenced").get_json()["total"] == 1
    restarted = app_on(store, state_dir=tmp_path).test_client()
    assert restarted.get("/api/v1/alerts?state=silenced").get_json()["alerts"][0]["id"] == alert["id"]
    assert client.delete(f"/api/v1/alerts/{alert['id']}/silence").status_code == 204
    assert client.get("/api/v1/alerts?state=silenced").get_json()["total"] == 0
    assert client.delete(f"/api/v1/alerts/{alert['id']}/silence").status_code == 404
    assert client.post("/api/v1/alerts/none/silence", json={}).status_code == 404
    assert client.post(f"/api/v1/alerts/{alert['id']}/silence", json={"duration": "soon"}).status_code == 422


class Told(BaseHTTPRequestHandler):
    bodies: list[tuple[str, object]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_new_and_ended_alerts_are_sent_once_and_silenced_ones_are_not(store: StorePool, story: Story) -> None:
    server = HTTPServer(("127.0.0.1", 0), Told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    numbers = {"dead": 3.0}
    found = evaluator(store, story, numbers)
    alerts = Alerts(found, webhook=f"{base}/hook", alertmanager=base)
    alerts.refresh()
    _, body = next(item for item in Told.bodies if item[0] == "/hook")
    states = {alert["rule"]: alert["state"] for alert in body["alerts"]}  # type: ignore[index]
    assert states["DeadRows"] == "firing"
    manager = next(item[1] for item in Told.bodies if item[0] == "/api/v2/alerts")
    assert {"alertname": "DeadRows", "severity": "critical"} in [alert["labels"] for alert in manager]  # type: ignore[attr-defined]
    Told.bodies.clear()
    alerts.refresh()
    assert [path for path, _ in Told.bodies] == ["/api/v2/alerts"], "nothing new for the webhook"
    Told.bodies.clear()
    numbers.clear()
    alerts.refresh()
    (ended,) = [item[1]["alerts"] for item in Told.bodies if item[0] == "/hook"]  # type: ignore[index]
    assert [(alert["rule"], alert["state"]) for alert in ended] == [("DeadRows", "resolved")]
    server.shutdown()
    with pytest.raises(Problem):
        alerts.silence("none", until_ms=0, comment="", author="")


def test_the_rules_file_is_checked_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    good = (
        '[[rule]]\nname = "A"\nkind = "threshold"\nseverity = "info"\nsummary = "s"\naction = "a"\n'
        'metric = "m"\nabove = 1\nfor = "1m"\n'
    )
    path.write_text(good)
    assert load(path).rules[0].parameters["for"] == MINUTE
    for text, words in (
        (good + good, "twice"),
        (good.replace("threshold", "magic"), "kind is one of"),
        (good.replace('metric = "m"\n', ""), "lacks metric"),
        (good.replace('"info"', '"bad"'), "severity is one of"),
        (good.replace('"1m"', '"soon"'), "for: 'soon' is no duration"),
        (good.replace("above = 1\n", ""), "either above or below"),
        ("[[", "is no TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            load(path)


def test_the_same_rules_are_written_for_prometheus() -> None:
    found = yaml.safe_load(rules_file(load()))["groups"][0]["rules"]
    by_name = {rule["alert"]: rule for rule in found}
    assert by_name["TempHigh"]["expr"] == "DCGM_FI_DEV_GPU_TEMP > 85"
    assert by_name["TempHigh"]["for"] == "300s"
    assert "== 79" in by_name["XidCritical"]["expr"]
    for rule in found:
        promql_parser.parse(rule["expr"])
