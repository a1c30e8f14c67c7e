"""``telemetry-streamer`` as its users meet it: processes, exit codes, one-line errors. The broker is a directory."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from tests.helpers.processes import ROOT, get_json
from tests.helpers.producing import batches_in, conflicts_in, rows_in
from tests.helpers.waiting import eventually

HEADER = "timestamp,metric_name,gpu_id,uuid,Hostname,value\n"


def command(*args: object, broker: Path | None = None) -> list[str]:
    line = [sys.executable, "-m", "producers.cli", *map(str, args)]
    if broker is not None:
        line += ["--connect", f"dir://{broker}", "--producer", "tests.helpers.producing:DirectoryProducer"]
        line += ["--http", "off", "--state-dir", str(broker.parent / "state")]
    return line


def streamer(*args: object, broker: Path | None = None, stdin: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, broker=broker), cwd=ROOT, capture_output=True, input=stdin, timeout=60, check=False
    )


@pytest.fixture
def broker(tmp_path) -> Path:
    directory = tmp_path / "broker"
    directory.mkdir()
    return directory


def dcgm_file(path: Path, rows: int, bad: dict[int, str] | None = None) -> Counter:
    """A file of ``rows`` distinct rows; ``bad`` puts another text at a line. Returns what should arrive."""
    expected: Counter = Counter()
    with path.open("w") as out:
        out.write(HEADER)
        for i in range(rows):
            line = f"2025-07-18T20:42:{i % 60:02d}Z,DCGM_FI_DEV_GPU_TEMP,{i % 8},GPU-{i % 97},host-{i % 13},{i}"
            if bad and i + 2 in bad:
                line = bad[i + 2]
            else:
                expected[f"GPU-{i % 97}", "DCGM_FI_DEV_GPU_TEMP", float(i)] += 1
            out.write(line + "\n")
    return expected


def test_a_file_is_shared_out_among_workers_without_gap_or_overlap(tmp_path, broker):
    expected = dcgm_file(tmp_path / "a.csv", 20_000)
    done = streamer("csv", tmp_path / "a.csv", "--workers", 3, "--batch-rows", 777, broker=broker)
    assert done.returncode == 0, done.stderr
    batches = batches_in(broker)
    assert rows_in(batches) == expected
    assert len({batch.session for batch in batches}) == 3
    assert max(batch.rows for batch in batches) <= 777


def test_shards_share_a_file_without_gap_or_overlap(tmp_path, broker):
    expected = dcgm_file(tmp_path / "a.csv", 5_000)
    for part in range(3):
        assert streamer("csv", tmp_path / "a.csv", "--shard", f"{part}/3", broker=broker).returncode == 0
    assert rows_in(batches_in(broker)) == expected


def test_bad_rows_are_kept_with_their_line_numbers_and_the_rest_goes_on(tmp_path, broker):
    bad = {3: "2025-07-18T20:42:00Z,M,0,GPU-1,h,warm", 9_000: "a,b", 9_500: '2025-07-18T20:42:00Z,M,0,"GPU-1,h,1'}
    expected = dcgm_file(tmp_path / "a.csv", 10_000, bad)
    rejects = tmp_path / "rejects.ndjson"
    done = streamer("csv", tmp_path / "a.csv", "--rejects", rejects, "--workers", 2, broker=broker)
    assert done.returncode == 0
    assert rows_in(batches_in(broker)) == expected
    kept = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert {(row["line"], row["reason"], row["text"]) for row in kept} == {
        (3, "not_a_number", bad[3]),
        (9_000, "ragged", bad[9_000]),
        (9_500, "quote", bad[9_500]),
    }
    assert {row["source"] for row in kept} == {str(tmp_path / "a.csv")}
    assert b'"msg": "bad rows were left out", "rows": 3' in done.stderr


def test_strict_stops_at_the_first_bad_row_and_names_file_and_line(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 3_000, {2_000: "2025-07-18T20:42:00Z,M,0,GPU-1,h,warm"})
    done = streamer("csv", tmp_path / "a.csv", "--strict", "--workers", 1, broker=broker)
    assert done.returncode == 2
    last = done.stderr.decode().strip().splitlines()[-1]
    assert last == f"telemetry-streamer: {tmp_path}/a.csv: line 2000, column value: the value is no number"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (b"timestamp,metric_name,uuid\n", "no value column"),
        (b"timestamp,metric_name,value\n1,M,2\n", "no column that identifies a GPU"),
        (b"uuid,hostname\nGPU-1,h\n", "nor a numeric column"),
        (b"uuid,uuid,value,metric\n", "names the column 'uuid' twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it_and_exit_code_2(tmp_path, content, complaint):
    path = tmp_path / "input.csv"
    if content is not None:
        path.write_bytes(content)
    done = streamer("csv", path, "--http", "off")
    assert done.returncode == 2
    (line,) = done.stderr.decode().strip().splitlines()
    assert str(path) in line
    assert complaint in line


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["csv"], "FILES"),
        (["csv", "a.csv", "--rate", "fast"], "--rate"),
        (["csv", "a.csv", "--shard", "3/3"], "--shard"),
        (["csv", "a.csv", "--batch-rows", "70000"], "65536"),
        (["csv", "a.csv", "--timestamp", "now"], "--timestamps"),
        (["csv", "nothing-*.csv"], "no file matches"),
        (["simulate", "--metrics", "HEAT"], "HEAT"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(args, complaint):
    done = streamer(*args)
    assert done.returncode == 2
    (line,) = done.stderr.decode().strip().splitlines()
    assert complaint in line


def test_original_timestamps_are_kept_and_shifted_ones_end_now(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 60)
    assert streamer("csv", tmp_path / "a.csv", "--timestamps", "original", broker=broker).returncode == 0
    times = sorted(t for batch in batches_in(broker) for t in batch.timestamp_ns.tolist())
    assert times == [(1752871320 + i) * 10**9 for i in range(60)]
    for path in broker.iterdir():
        path.unlink()
    before = time.time_ns()
    assert streamer("csv", tmp_path / "a.csv", "--timestamps", "shift", broker=broker).returncode == 0
    shifted = sorted(t for batch in batches_in(broker) for t in batch.timestamp_ns.tolist())
    assert before <= shifted[-1] <= time.time_ns()
    assert [t - shifted[0] for t in shifted] == [i * 10**9 for i in range(60)]


def test_rate_and_duration_bound_an_endless_loop(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 100)
    began = time.monotonic()
    done = streamer(
        "csv", tmp_path / "a.csv", "--loop", "--rate", 400, "--duration", "2s", "--workers", 1, broker=broker
    )
    assert done.returncode == 0
    assert time.monotonic() - began < 10
    rows = sum(batch.rows for batch in batches_in(broker))
    assert 300 <= rows <= 1000


def test_an_interval_begins_a_pass_a_period(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 100)
    done = streamer("csv", tmp_path / "a.csv", "--interval", "1s", "--duration", "3500ms", broker=broker)
    assert done.returncode == 0
    rows = sum(batch.rows for batch in batches_in(broker))
    assert rows in (200, 300, 400)


def test_a_killed_worker_is_started_again_and_no_row_is_lost_or_doubled(tmp_path, broker):
    import psutil

    expected = dcgm_file(tmp_path / "a.csv", 30_000)
    (broker / "slow").write_text("0.01")
    process = subprocess.Popen(
        command("csv", tmp_path / "a.csv", "--batch-rows", 100, "--workers", 2, broker=broker),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    for round_ in range(3):
        eventually(lambda: len(list(broker.iterdir())) > 20 + 40 * round_, 30, "batches arrive")  # noqa: B023
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        os.kill(workers[round_ % len(workers)].pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert rows_in(batches_in(broker)) == expected
    assert stderr.count(b"a worker ended and is started again") == 3


def test_sigterm_drains_within_the_deadline_and_exits_0(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 1000)
    (broker / "slow").write_text("0.01")
    process = subprocess.Popen(
        command("csv", tmp_path / "a.csv", "--loop", "--interval", "10ms", broker=broker), cwd=ROOT
    )
    eventually(lambda: len(list(broker.iterdir())) > 3, 30, "batches arrive")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_waiting_for_credit_does_not_keep_a_streamer_from_ending(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 1000)
    (broker / "stop").touch()
    process = subprocess.Popen(command("csv", tmp_path / "a.csv", broker=broker), cwd=ROOT)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(12) == 0


def test_status_health_and_metrics_are_served(tmp_path, broker):
    from tests.helpers.processes import RunningProcess

    dcgm_file(tmp_path / "a.csv", 1000)
    args = command("csv", tmp_path / "a.csv", "--interval", "50ms", broker=broker)[3:]
    args[args.index("off")] = "127.0.0.1:0"
    running = RunningProcess("producers.cli", args, tmp_path / "log", name="streamer")
    try:
        base = running.wait_ready()
        status = eventually(
            lambda: (lambda s: s if s["rows_acked"] >= 2000 else None)(get_json(f"{base}/api/v1/status")), 20, "rows"
        )
        assert status["source"] == "csv"
        assert get_json(f"{base}/health")["checks"]["broker"]["status"] == "healthy"
    finally:
        running.kill()


def test_the_bundled_sample_is_what_the_simulator_makes(tmp_path):
    """``producers/sample/dcgm_sample.csv`` is no hand-made file: this is the command that makes it."""
    sample = ROOT / "producers" / "sample" / "dcgm_sample.csv"
    out = tmp_path / "sample.csv"
    args = ["--hosts", "25", "--rows", "2000", "--seed", "2056", "--start", "2026-01-15T12:00:00Z"]
    assert streamer("simulate", "--out", out, *args).returncode == 0
    assert out.read_bytes() == sample.read_bytes()
    assert len(sample.read_bytes()) < 1_000_000
    with sample.open() as lines:
        rows = list(csv.DictReader(lines))
    assert any(row["metric_name"] == "DCGM_FI_DEV_XID_ERRORS" and row["value"] != "0" for row in rows)
    assert any(row["value"].startswith("92233720368547757") for row in rows)


def test_a_simulated_fleet_reaches_the_broker_whole(broker):
    done = streamer("simulate", "--fast", "--hosts", 5, "--rows", 4000, "--workers", 2, broker=broker)
    assert done.returncode == 0
    batches = batches_in(broker)
    assert sum(batch.rows for batch in batches) == 4000
    assert len({device.uuid for batch in batches for device in batch.dictionary.devices}) == 40


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_standard_input_is_read_to_its_end_compressed_or_not(tmp_path, broker, pack):
    expected = dcgm_file(tmp_path / "a.csv", 8000)
    done = streamer("csv", "-", "--workers", 2, broker=broker, stdin=pack((tmp_path / "a.csv").read_bytes()))
    assert done.returncode == 0, done.stderr
    assert rows_in(batches_in(broker)) == expected


def test_standard_input_that_is_a_file_is_read_from_its_beginning(tmp_path, broker):
    expected = dcgm_file(tmp_path / "a.csv", 800)
    with (tmp_path / "a.csv").open("rb") as stdin:
        assert subprocess.run(command("csv", "-", broker=broker), cwd=ROOT, stdin=stdin, timeout=60).returncode == 0
    assert rows_in(batches_in(broker)) == expected


def test_explain_prints_what_is_understood_and_sends_nothing(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 10)
    done = streamer("csv", tmp_path / "a.csv", "--explain", broker=broker)
    assert done.returncode == 0
    assert b"identity: uuid" in done.stdout
    assert list(broker.iterdir()) == []


def test_a_growing_file_is_followed_also_when_it_is_replaced_or_its_worker_dies(tmp_path, broker):
    import psutil

    path = tmp_path / "a.csv"
    expected = dcgm_file(path, 300)
    line = command("csv", path, "--follow", "--batch-rows", 20, "--timestamps", "original", broker=broker)
    process = subprocess.Popen(line, cwd=ROOT)

    def arrived(count):
        eventually(lambda: sum(rows_in(batches_in(broker)).values()) >= count, 30, f"{count} rows arrive")

    def append(start, count):
        with path.open("a") as out:
            for i in range(start, start + count):
                out.write(f"2025-07-18T20:42:00Z,DCGM_FI_DEV_GPU_TEMP,0,GPU-{i % 97},host-1,{i}\n")
                out.flush()
                expected[f"GPU-{i % 97}", "DCGM_FI_DEV_GPU_TEMP", float(i)] += 1

    try:
        arrived(300)
        with path.open("a") as out:
            out.write("2025-07-18T20:42:00Z,DCGM_FI_DEV_GPU_TEMP,0,GPU-half,host-1,")
        time.sleep(0.6)
        assert sum(rows_in(batches_in(broker)).values()) == 300
        with path.open("a") as out:
            out.write("5\n")
        expected["GPU-half", "DCGM_FI_DEV_GPU_TEMP", 5.0] += 1
        arrived(301)
        (broker / "slow").write_text("0.02")
        append(1000, 500)
        for child in psutil.Process(process.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        append(2000, 500)
        (broker / "slow").unlink()
        arrived(1301)
        fresh = tmp_path / "fresh.csv"
        expected += dcgm_file(fresh, 50)
        os.replace(fresh, path)
        arrived(1351)
        process.send_signal(signal.SIGTERM)
        assert process.wait(12) == 0
    finally:
        process.kill()
    assert rows_in(batches_in(broker)) == expected
    assert conflicts_in(broker) == []
