"""What the manifests render to, as an installation would get it."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
KUSTOMIZE: Final = ROOT / "deploy" / "kustomize"
OVERLAYS: Final = ("dev", "staging", "prod")
COMPONENTS: Final = tuple(
    sorted(p.name for p in (KUSTOMIZE / "components").iterdir() if (p / "kustomization.yaml").exists())
)
INSTALLATIONS: Final = (*OVERLAYS, *COMPONENTS)
"""Everything that can be installed: what holds of the overlays holds of each component."""
BIN: Final = Path(sys.executable).parent


def render(directory: Path) -> list[dict[str, Any]]:
    """``kubectl kustomize``; AssertionError with its own words where it does not build."""
    done = subprocess.run([BIN / "kubectl", "kustomize", directory], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@functools.cache
def overlay(name: str) -> list[dict[str, Any]]:
    return render(KUSTOMIZE / "overlays" / name)


@functools.cache
def with_component(component: str) -> list[dict[str, Any]]:
    """The base with one component on it."""
    resources = [] if component == "gpu-node" else ["../base"]
    return built({"resources": resources, "components": [f"../components/{component}"]})


def built(kustomization: dict[str, Any]) -> list[dict[str, Any]]:
    """What a kustomization in a folder of ``deploy/kustomize`` renders to."""
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    # Inside the tree: kustomize refuses bases that it reaches through a temporary folder's absolute path.
    with tempfile.TemporaryDirectory(dir=KUSTOMIZE) as directory:
        (Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(head | kustomization))
        return render(Path(directory))


def installation(name: str) -> list[dict[str, Any]]:
    """An overlay, or the base with a component, by name."""
    return overlay(name) if name in OVERLAYS else with_component(name)


def pods(documents: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(kind/name, pod spec) of every workload."""
    return [
        (f"{d['kind']}/{d['metadata']['name']}", d["spec"]["template"]["spec"])
        for d in documents
        if d["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job")
    ]


def our_containers(documents: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    """(workload, container, its environment with the config map's values) of every container of our image."""
    maps = {d["metadata"]["name"]: d.get("data", {}) for d in documents if d["kind"] == "ConfigMap"}
    found = []
    for name, pod in pods(documents):
        for container in pod["containers"]:
            if "gpu-telemetry" not in container["image"]:
                continue
            environment: dict[str, str] = {}
            for source in container.get("envFrom", []):
                environment.update(maps[source["configMapRef"]["name"]])
            environment.update({e["name"]: e.get("value", "") for e in container.get("env", [])})
            found.append((name, container, environment))
    return found


@functools.cache
def help_of(*command: str) -> str:
    """The command's ``--help``."""
    done = subprocess.run([BIN / command[0], *command[1:], "--help"], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr}"
    return done.stdout


def variables_of(*command: str) -> set[str]:
    """Every environment variable that the command reads, from its help."""
    text = " ".join(help_of(*command).split())
    return {name.strip() for listed in re.findall(r"env: ([A-Z0-9_, ]+)\]", text) for name in listed.split(",")}
