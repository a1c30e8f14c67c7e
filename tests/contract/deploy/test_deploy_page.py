"""What docs/deploy.md and docs/tuning.md tell: the example builds, variables, options and make targets are the code's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from telemetry.configuration_page import command_lines
from tests.helpers.documents import fences
from tests.helpers.kustomize import ROOT, built
from zmqbroker.admin.commands import COMMANDS

PAGES = [ROOT / "docs" / name for name in ("deploy.md", "tuning.md", "operations.md")]
OTHERS = {"--replicas", "--build", "--previous", "--now", "--level", "--runs"}
"""Options of kubectl, docker, systemd and the benchmarks."""


def test_the_overlay_for_gitops_builds_on_prod_with_the_label_of_its_cluster() -> None:
    [text] = [fence.text for fence in fences() if fence.page == "docs/deploy.md" and "# clusters/eu-1" in fence.text]
    overlay = yaml.safe_load(text)
    assert [re.sub(r"^https://git.example.org/gpu-telemetry//", "", r) for r in overlay["resources"]] == [
        "deploy/kustomize/overlays/prod?ref=v0.1.0"
    ]
    documents = built(overlay | {"resources": ["../overlays/prod"]})
    maps = {
        d["metadata"]["namespace"]: d["data"]
        for d in documents
        if d["kind"] == "ConfigMap" and "LOG_LEVEL" in d["data"]
    }
    assert maps["gpu-telemetry"]["CLICKHOUSE_URL"] == "https://clickhouse.eu-1.example.org:8443"
    assert maps["gpu-telemetry-agents"]["STREAMER_LABEL"] == "cluster=eu-1"
    [ingress] = [d for d in documents if d["kind"] == "Ingress"]
    assert ingress["spec"]["rules"][0]["host"] == ingress["spec"]["tls"][0]["hosts"][0] == "telemetry.eu-1.example.org"
    images = {
        container["image"]
        for d in documents
        if d["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job")
        for container in d["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.example.org/telemetry/gpu-telemetry@sha256:" + 64 * "1"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_variable_that_is_told_is_read_by_a_process(page: Path) -> None:
    known = set()
    for line in command_lines():
        for command in line.commands or [""]:
            for option in line.options_of(command):
                known |= {v + end for v in option.variables(line.prefix) for end in ("", "_FILE")}
    told = set(
        re.findall(r"\b(?:BROKER|STREAMER|COLLECTOR|STORE|API|ZMQBROKER|CLICKHOUSE)_[A-Z_]+\b", page.read_text())
    )
    assert told <= known | {"STORE_PASSWORD"}, f"{page.name}: {told - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_told_exists(page: Path) -> None:
    known = {f"--{argument.name}" for command in COMMANDS for argument in command.arguments if argument.flag}
    for line in command_lines():
        known |= {f"--{option.flag}" for command in line.commands or [""] for option in line.options_of(command)}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
    assert told <= known | OTHERS, f"{page.name}: {told - known}"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("images", "docker is not here"),
        ("push", "say where to: make push REGISTRY="),
        ("push REGISTRY=registry.example.org", "docker is not here"),
        ("deploy", "kubectl reaches no cluster"),
        ("undeploy", "kubectl reaches no cluster"),
        ("undeploy OVERLAY=prod", "make undeploy OVERLAY=prod YES=1"),
    ],
)
def test_what_a_target_needs_and_does_not_find_is_told_in_one_line(command: str, told: str, tmp_path: Path) -> None:
    """On a machine with hardly anything, and no cluster."""
    for tool in ("make", "bash", "sh", "sed", "python3"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not here"))
    done = subprocess.run(
        ["make", "--no-print-directory", "--assume-old=.venv/.installed", *command.split()],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path), "KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""
