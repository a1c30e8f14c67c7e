"""The README's promises, kept as a newcomer would check them: make, curl, Ctrl-C."""

from __future__ import annotations

import csv
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import REAL_CSV
from tests.helpers.pipeline import CTRL_C_TIMEOUT_S, Pipeline
from tests.helpers.processes import ROOT
from tests.helpers.waiting import eventually

SAMPLE = ROOT / "producers" / "sample" / "dcgm_sample.csv"

pytestmark = pytest.mark.timeout(400)


def what_is_in(path: Path) -> tuple[int, set[str], set[str]]:
    """Rows, GPUs and metric names of a DCGM export, read in the plainest way there is."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return len(rows), {row["uuid"] for row in rows}, {row["metric_name"] for row in rows}


def test_make_run_shows_every_gpu_ends_on_ctrl_c_and_continues_on_the_same_data(tmp_path: Path) -> None:
    source = REAL_CSV if REAL_CSV.exists() else SAMPLE
    _, gpus, _ = what_is_in(source)
    gpu = "GPU-5fd4f087-86f3-7a43-b711-4771313afc50" if source == REAL_CSV else min(gpus)
    with Pipeline("run", tmp_path / "data", None if source == SAMPLE else source) as first:
        first.wait_ready()
        eventually(lambda: first.get("/api/v1/gpus")["total"] == len(gpus), 30, f"{len(gpus)} GPUs are there")
        answer = first.get(f"/api/v1/gpus/{gpu}/telemetry?page_size=1000")
        assert answer["gpu_id"] == gpu
        rows = answer["telemetry"]
        with source.open(newline="") as file:
            expected = {row["metric_name"] for row in csv.DictReader(file) if row["uuid"] == gpu and row["value"]}
        assert {row["metric_name"] for row in rows} == expected
        times = [row["timestamp"] for row in rows]
        assert times == sorted(times)
        assert all(isinstance(row["value"], int | float) for row in rows)
        before = eventually(lambda: stored(first), 20, "rows are stored")
        oldest = times[0]
        check_the_tour(first, gpu)
        seconds = first.ctrl_c()
        assert seconds < CTRL_C_TIMEOUT_S, first.output()[-3000:]
        assert first.killed_at_the_end() == []
        assert "Traceback" not in first.output()

    with Pipeline("run", tmp_path / "data", None if source == SAMPLE else source) as second:
        second.wait_ready()
        eventually(lambda: stored(second) > before, 30, "more rows than the first run left")
        assert second.get("/api/v1/gpus")["total"] == len(gpus)
        kept = second.get(f"/api/v1/gpus/{gpu}/telemetry?page_size=1")
        assert kept["telemetry"][0]["timestamp"] == oldest
        assert second.ctrl_c() < CTRL_C_TIMEOUT_S
        assert second.killed_at_the_end() == []


def check_the_tour(pipeline: Pipeline, gpu: str) -> None:
    """Every address that the README tells is there, and says something."""
    readme = (ROOT / "README.md").read_text()
    found = re.findall(r"'(http://127[^']+)'|<(http://127[^>]+)>|curl (http://127\S+)", readme)
    addresses = ["".join(groups) for groups in found]
    assert len(addresses) >= 6
    for address in addresses:
        url = pipeline.here(address.replace("GPU-...", gpu))
        assert url != address, f"{address} is at none of the default ports"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.status == 200, url
            assert answer.read(), url


def stored(pipeline: Pipeline) -> int:
    return int(pipeline.get("/api/v1/stats").get("stored") or 0)


def test_each_pass_of_a_file_into_running_services_stores_exactly_its_rows(tmp_path: Path) -> None:
    source = REAL_CSV if REAL_CSV.exists() else SAMPLE
    count, _, _ = what_is_in(source)
    with Pipeline("services", tmp_path / "data") as services:
        services.wait_ready()
        command = [
            str(ROOT / ".venv" / "bin" / "telemetry-streamer"),
            *("csv", str(source), "--http", "127.0.0.1:0", "--state-dir", str(tmp_path / "streamer")),
            *("--connect", f"tcp://127.0.0.1:{services.ports['PORT_BROKER']}"),
        ]
        for passes in (1, 2):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr[-2000:]

            def told(expected: int = passes * count) -> bool:
                rows = services.get("/api/v1/stats")
                return bool(rows["stored"] + rows["rejected"] == expected == rows["sent"])

            eventually(told, 30, f"{passes * count} rows are sent and stored or rejected by name")
        rows = services.get("/api/v1/stats")
        assert rows["dead"] == 0
        if source == REAL_CSV:
            assert rows["stored"] == 4940
            assert rows["rejected"] == 0
        assert services.ctrl_c() < CTRL_C_TIMEOUT_S
        assert services.killed_at_the_end() == []
