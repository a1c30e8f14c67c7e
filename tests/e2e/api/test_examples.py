"""The examples of docs/api.md are run as they stand, against the real engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.api import Fleet
from tests.helpers.processes import ROOT, RunningProcess, free_port
from tests.helpers.tools import needed

BLOCKS = re.findall(r"```(sh|python|javascript)\n(.*?)```", (ROOT / "docs" / "api.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("examples")
    port = free_port()
    with (
        RunningProcess(
            "clickhouse.cli",
            ["serve", "--migrate", "--data-dir", str(directory / "store"), "--http", "127.0.0.1:0"],
            directory,
            name="store",
        ) as store,
        RunningProcess(
            "zmqbroker.cli",
            ["serve", "--data-dir", str(directory / "broker"), "--bind", f"tcp://127.0.0.1:{port}", "--admin-bind",
             f"tcp://127.0.0.1:{free_port()}", "--http", "127.0.0.1:0"],
            directory,
            name="broker",
        ),
    ):  # fmt: skip
        url = store.wait_ready()
        Fleet(url).fill()
        arguments = ["--clickhouse", url, "--connect", f"tcp://127.0.0.1:{port}", "--http", "127.0.0.1:0"]
        with RunningProcess("api.cli", arguments, directory, name="api") as process:
            yield process.wait_ready()


def test_the_page_has_examples_in_each_language() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "javascript"}


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"{n}-{block[0]}" for n, block in enumerate(BLOCKS)])
def test_an_example_of_the_page_runs(api: str, language: str, code: str, tmp_path: Path) -> None:
    commands = {
        "sh": ["bash", "-euo", "pipefail", "-c", code.replace("curl -s", "curl -sS --fail-with-body")],
        "python": [sys.executable, "-c", code],
        "javascript": ["node", "--input-type=module", "-e", code],
    }
    if language == "sh":
        needed("curl", "curl")
    if language == "javascript":
        needed("node", "nodejs")
    ended = subprocess.run(
        commands[language],
        cwd=tmp_path,
        env={**os.environ, "API": api},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"status":4' not in ended.stdout, ended.stdout
    assert ended.stdout
