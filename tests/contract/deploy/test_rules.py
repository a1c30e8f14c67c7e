"""Prometheus rules: every expression parses and names only metrics that exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from telemetry.catalogue import CATALOGUE
from telemetry.metrics import METRICS
from tests.helpers.kustomize import ROOT
from tests.helpers.promql import metrics_of

RULES = sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))


def rules() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield path.name, rule


def known() -> set[str]:
    names = set(CATALOGUE)
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names | {rule["record"] for _, rule in rules() if "record" in rule}


@pytest.mark.parametrize(
    ("file", "rule"), list(rules()), ids=lambda v: v if isinstance(v, str) else v.get("alert") or v["record"]
)
def test_every_rule_parses_and_asks_for_metrics_that_exist(file: str, rule: dict[str, Any]) -> None:
    found = set(metrics_of(rule["expr"]))
    assert found, "a rule that asks for no metric never fires"
    assert found <= known(), f"{file}: {found - known()} is exported by nothing"
    if "alert" in rule:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
