"""Dockerfile, compose file, locked requirements, systemd units, rules: checked by the tools that read them."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from compose_spec import ComposeSpecification
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers.kustomize import BIN, ROOT, help_of
from tests.helpers.tools import needed

DOCKER = ROOT / "deploy" / "docker"


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_copies_every_package_and_sends_nothing_else() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = {name.split(".")[0] for name in config["options"]["packages"].split()}
    dockerfile = (DOCKER / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text()
    for package in packages:
        assert f"COPY {package} " in dockerfile, f"{package} is not copied into the image"
        assert f"!{package}\n" in ignored, f"{package} is not sent to the build"


@pytest.mark.parametrize(("name", "extras"), [("requirements.txt", ()), ("requirements-embedded.txt", ("embedded",))])
def test_locked_requirements_satisfy_the_package_and_every_one_has_hashes(name: str, extras: tuple[str, ...]) -> None:
    text = (DOCKER / name).read_text()
    locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+) \\$", text, flags=re.MULTILINE))
    locked = {re.sub(r"[-_.]+", "-", k).lower(): v for k, v in locked.items()}
    assert "http" not in text.replace("httptools", ""), "no index addresses"
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"].split("\n")
    for extra in extras:
        wanted += config["options.extras_require"][extra].split("\n")
    for line in filter(None, wanted):
        requirement = Requirement(line)
        have = locked.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert have is not None, f"{requirement.name} is not locked: run make lock"
        assert Version(have) in requirement.specifier, f"{requirement} is locked at {have}: run make lock"


def test_the_compose_file_is_valid_and_its_commands_exist() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    ComposeSpecification.model_validate(compose)
    for name, service in compose["services"].items():
        command = service.get("command")
        if not command:
            continue
        program = [word for word in command[:2] if not word.startswith("-")]
        text = help_of(*program)
        for word in command:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", text), f"{name}: {word} is no option of {' '.join(program)}"


def test_systemd_accepts_the_units_and_their_commands_exist(tmp_path: Path) -> None:
    analyze = needed("systemd-analyze", "systemd")
    units = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
    assert units
    for unit in units:
        text = unit.read_text()
        [command] = re.findall(r"^ExecStart=/opt/gpu-telemetry/bin/(.+)$", text, flags=re.MULTILINE)
        words = command.split()
        program = [word for word in words[:2] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", help_of(*program)), f"{unit.name}: {word}"
        (tmp_path / unit.name).write_text(text.replace(f"/opt/gpu-telemetry/bin/{words[0]}", "/bin/true"))
    done = subprocess.run([analyze, "verify", *sorted(tmp_path.glob("*.service"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rules_made_from_the_api_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "prometheus" / "make_rules.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
