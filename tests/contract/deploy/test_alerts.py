"""Each alert that judges a rate or a window, on series made up for it: promtool evaluates the rules that are deployed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.kustomize import ROOT
from tests.helpers.tools import needed

RULES = ROOT / "deploy" / "prometheus" / "pipeline.rules.yaml"
OLDEST = 'zmqbroker_group_oldest_age_seconds{topic="t",group="clickhouse"}'
DEAD = 'zmqbroker_topic_dead_messages{topic="t"}'
GOOD, BAD = 'api_requests_total{status="200"}', 'api_requests_total{status="503"}'


def case(alert: str, at: str, series: dict[str, str], *, fires: bool) -> dict[str, Any]:
    """One of promtool's test groups: series a minute apart, and whether the alert fires at a time."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) > bool 0 or vector(0)',
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
        ],
    }


CASES = {
    "an hour of fresh rows is no alert": case("RowsLateFastBurn", "70m", {OLDEST: "5x70"}, fires=False),
    "ten minutes of late rows burn fast": case("RowsLateFastBurn", "70m", {OLDEST: "5x59 90x11"}, fires=True),
    "late rows that ended an hour ago are over": case("RowsLateFastBurn", "70m", {OLDEST: "90x9 5x60"}, fires=False),
    "three minutes of late rows in six hours burn slowly": case(
        "RowsLateSlowBurn", "370m", {OLDEST: "5x340 90x29"}, fires=True
    ),
    "one error in ten thousand is within the objective": case(
        "ApiErrorsFastBurn", "70m", {GOOD: "0+10000x70", BAD: "0+1x70"}, fires=False
    ),
    "five errors in a hundred burn fast": case(
        "ApiErrorsFastBurn", "70m", {GOOD: "0+95x70", BAD: "0+5x70"}, fires=True
    ),
    "one error in a hundred burns slowly": case(
        "ApiErrorsSlowBurn", "390m", {GOOD: "0+99x390", BAD: "0+1x390"}, fires=True
    ),
    "an API that nobody asks has no errors": case("ApiErrorsFastBurn", "70m", {GOOD: "7x70"}, fires=False),
    "a new dead letter is told": case("DeadLetters", "20m", {DEAD: "0x15 2x5"}, fires=True),
    "letters that were dropped are not": case("DeadLetters", "20m", {DEAD: "3x15 1x5"}, fires=False),
    "a lag that grows is told": case(
        "LagGrows", "40m", {'zmqbroker_group_lag_rows{topic="t",group="g"}': "2e7+1e6x40"}, fires=True
    ),
    "a lag that falls is not": case(
        "LagGrows", "40m", {'zmqbroker_group_lag_rows{topic="t",group="g"}': "9e7-1e6x40"}, fires=False
    ),
    "a broker that is not scraped is told": case("BrokerAbsent", "5m", {"up": "1x5"}, fires=True),
}


@pytest.fixture
def promtool() -> str:
    return needed("promtool", "prometheus")


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_only_then(name: str, tmp_path: Path, promtool: str) -> None:
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [CASES[name]]}
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(content))
    run(promtool, "test", "rules", str(tmp_path / "case.yaml"))


def test_prometheus_accepts_its_configuration_with_all_rules(tmp_path: Path, promtool: str) -> None:
    text = (RULES.parent / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/rules", str(RULES.parent)))
    assert "2 rule files found" in run(promtool, "check", "config", str(tmp_path / "prometheus.yml"))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
