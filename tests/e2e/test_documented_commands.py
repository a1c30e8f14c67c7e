"""Every shell block of the documents that is not marked otherwise is run as it stands, against the whole pipeline."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.documents import Fence, run_as_they_stand
from tests.helpers.pipeline import Pipeline
from tests.helpers.processes import ROOT
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.timeout(300)
BIN = ROOT / ".venv" / "bin"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, dict[str, str]]]:
    """The pipeline with the sample in it, and the environment of an operator's terminal."""
    directory = tmp_path_factory.mktemp("documents")
    with Pipeline("services", directory / "data") as pipeline:
        pipeline.wait_ready()
        subprocess.run(
            [
                *(BIN / "telemetry-streamer", "csv", ROOT / "producers" / "sample" / "dcgm_sample.csv"),
                *("--connect", f"tcp://127.0.0.1:{pipeline.ports['PORT_BROKER']}", "--http", "off"),
                *("--state-dir", directory / "streamer"),
            ],
            check=True,
            timeout=60,
        )
        eventually(lambda: pipeline.get("/api/v1/stats")["stored"], 30, "rows are stored")
        env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ZMQBROKER_ADMIN_URL": f"tcp://127.0.0.1:{pipeline.ports['PORT_ADMIN']}",
            "CLICKHOUSE_URL": f"http://127.0.0.1:{pipeline.ports['PORT_STORE']}",
            "STORE_HTTP": "off",
            "HOME": str(directory),
        }
        # One message that is no batch, for what is told about dead letters.
        admin = [BIN / "zmqbroker", "admin"]
        subprocess.run([*admin, "produce", "gpu-telemetry", "no batch"], env=env, check=True, timeout=30)
        eventually(lambda: "gpu-telemetry" in asked([*admin, "dlq", "ls"], env), 30, "there is a dead letter")
        yield pipeline, env


def asked(command: list[str | Path], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, check=False, timeout=30, capture_output=True, text=True).stdout


@pytest.mark.parametrize("fence", run_as_they_stand(), ids=lambda fence: fence.title)
def test_a_block_of_commands_runs_as_it_stands(
    services: tuple[Pipeline, dict[str, str]], fence: Fence, tmp_path: Path
) -> None:
    pipeline, env = services
    # A relative directory of the broker's machine would lie where the broker was started.
    text = pipeline.here(fence.text).replace("--to backup-of-the-broker", f"--to {tmp_path}/backup")
    text = text.replace("curl -s ", "curl -sS --fail-with-body ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{fence.title}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    assert done.stdout.strip(), f"{fence.title} says nothing"
