"""The commands as an operator meets them: real processes, their exit codes, lines and pages."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos import journal
from tests.chaos.contents import contents, is_garbage
from tests.chaos.pipeline import Pipeline
from tests.helpers.processes import ROOT, RunningProcess, free_port, get_json
from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer

AWAY = ["--connect", "tcp://127.0.0.1:9", "--clickhouse", "http://127.0.0.1:9", "--http", "127.0.0.1:0"]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consumers.cli", *args], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["--linger", "soon"], "--linger"),
        (["--workers", "0"], "--workers"),
        (["--ack-timeout", "2s"], "--ack-timeout"),
        (["--clickhouse", "ftp://x"], "--clickhouse"),
        (["--http", "192.0.2.1:80"], "192.0.2.1"),
        (["archive"], "--out"),
        (["archive", "--out", "/proc/nothing/here"], "/proc/nothing/here"),
        (["archive", "--out", "/tmp", "--format", "xml"], "xml"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(args, named):
    ended = run(*args)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert named in ended.stderr


def test_help_tells_units_defaults_and_variables_and_no_secret():
    told = run("--help").stdout
    for text in ("--max-rows", "COLLECTOR_LINGER", "CLICKHOUSE_URL", "ZMQBROKER_URL", "seconds", "--password-file"):
        assert text in told
    assert "archive" in told


def test_without_broker_and_store_it_waits_says_so_and_leaves_on_sigterm(tmp_path: Path):
    with RunningProcess("consumers.cli", AWAY, tmp_path, name="collector") as collector:
        base = collector.http()
        health = eventually(lambda: get_json(f"{base}/health"), 10)
        assert health["checks"]["broker"]["status"] == health["checks"]["store"]["status"] == "unhealthy"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{base}/readyz", timeout=5)
        assert refused.value.code == 503
        with urllib.request.urlopen(f"{base}/healthz", timeout=5) as alive:
            assert alive.status == 200
        assert get_json(f"{base}/stats")["breaker"] in ("open", "half-open")
        eventually(lambda: "waiting for the store" in {line.get("msg") for line in collector.lines()}, 10)
        assert collector.stop(signal.SIGTERM) == 0


@pytest.fixture
def pipeline(tmp_path: Path):
    with Pipeline(tmp_path / "run", rows=20_000, rate=100_000) as made:
        yield made


def test_a_group_with_other_settings_is_refused_in_one_line(pipeline: Pipeline):
    pipeline.broker.start()
    with Consumer(pipeline.broker_url, max_rows=7, credit=0) as other:
        eventually(lambda: other.connected, 10)
        ended = run("--connect", pipeline.broker_url, "--clickhouse", "http://127.0.0.1:9", "--http", "127.0.0.1:0")
    assert ended.returncode == 2
    assert "max_rows" in ended.stderr.splitlines()[-1]


def test_started_before_everything_else_it_stores_all_and_its_pages_add_up(pipeline: Pipeline, tmp_path: Path):
    port = free_port()
    args = ["--connect", pipeline.broker_url, "--clickhouse", pipeline.store_url, "--http", f"127.0.0.1:{port}"]
    with RunningProcess("consumers.cli", args, tmp_path, name="collector") as collector:
        base = collector.http()
        pipeline.store.start()
        pipeline.broker.start()
        pipeline.feeder.start()
        collector.wait_ready()
        pipeline.wait_until_fed(60)
        told = journal.read(pipeline.journal)
        good = sum(one.rows for address, one in told.sent.items() if not is_garbage(*address))
        stats = eventually(
            lambda: (s := get_json(f"{base}/stats"))["stored_rows"] + s["rejected_rows"] == good and s,
            30,
            "all is stored",
        )
        assert stats["received_rows"] == 20_000
        assert stats["dead_batches"] == sum(is_garbage(*address) for address in told.sent)
        assert stats["rejected_rows"] == sum(stats["rejected_by_reason"].values()) > 0
        with urllib.request.urlopen(f"{base}/metrics", timeout=5) as page:
            text = page.read().decode()
        assert f"collector_rows_stored_total {float(stats['stored_rows'])}" in text
        assert "collector_insert_seconds_count" in text
        assert collector.stop(signal.SIGTERM) == 0
        assert collector.wait_for_line("stopped")["drained"] is True


def archived(root: Path) -> Counter:
    found: Counter = Counter()
    for path in root.glob("day=*/host=*/*.parquet"):
        table = pq.ParquetFile(path).read(columns=["_session", "_seq"])
        found.update(zip(table["_session"].to_pylist(), table["_seq"].to_pylist()))
    return found


def test_an_archive_that_is_killed_again_and_again_holds_every_row_once(tmp_path: Path):
    """The feeder is slow, so that every life of the archive finds something to do."""
    with Pipeline(tmp_path / "run", rows=40_000, rate=4_000) as pipeline:
        _kill_archives(pipeline, tmp_path)


def _kill_archives(pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "archive"
    args = ["archive", "--connect", pipeline.broker_url, "--out", str(out), "--http", "127.0.0.1:0", "--rows", "2000"]
    pipeline.broker.start()
    pipeline.feeder.start()
    for number in range(4):
        with RunningProcess(
            "consumers.cli", [*args, "--every", "200ms"], tmp_path, name=f"archive-{number}"
        ) as archive:
            archive.wait_for_line("archiving")
            if number < 3:
                eventually(lambda: "archived" in {line.get("msg") for line in archive.lines()}, 20)
                archive.popen.kill()
                continue
            pipeline.wait_until_fed(60)
            eventually(lambda: pipeline.lag_rows("archive") == 0, 60, "the archive has caught up")
            assert archive.stop(signal.SIGTERM) == 0
    told = journal.read(pipeline.journal)
    expected = {a: int(contents(*one).accepted.sum()) for a, one in told.sent.items() if not is_garbage(*a)}
    assert archived(out) == Counter({address: rows for address, rows in expected.items() if rows})
