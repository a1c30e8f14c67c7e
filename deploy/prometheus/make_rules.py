"""Writes what is made of the rules: ``gpu.rules.yaml`` from the API's alert rules, and PrometheusRule resources.

``python deploy/prometheus/make_rules.py [--check]``; ``make docs`` calls it. A test holds the files equal to this.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

from api.alerts.prometheus import rules_file
from api.alerts.rules import load

HERE: Final = Path(__file__).resolve().parent
RESOURCES: Final = HERE.parent / "kustomize" / "components" / "monitoring" / "prometheusrules.yaml"


def made() -> dict[Path, str]:
    """Every file that is made, with what it should hold."""
    gpu = rules_file(load(None))
    pipeline = (HERE / "pipeline.rules.yaml").read_text()
    resources = [resource("gpu", yaml.safe_load(gpu)), resource("pipeline", yaml.safe_load(pipeline))]
    head = "# Made by deploy/prometheus/make_rules.py from deploy/prometheus/*.rules.yaml. Do not edit.\n"
    return {
        HERE / "gpu.rules.yaml": gpu,
        RESOURCES: head + yaml.safe_dump_all(resources, sort_keys=False, width=110, explicit_start=True),
    }


def resource(name: str, rules: dict[str, Any]) -> dict[str, Any]:
    """A PrometheusRule as kube-prometheus-stack selects it."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"telemetry-{name}", "labels": {"release": "kube-prometheus-stack"}},
        "spec": {"groups": rules["groups"]},
    }


def main() -> int:
    files = made()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path.name} is stale: run make docs\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
