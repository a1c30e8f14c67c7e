"""R8: a resumed file run continues after any end, without gap or repeat."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from tests.helpers.producing import batches_in, conflicts_in, rows_in
from tests.helpers.waiting import eventually
from tests.integration.producers.test_producers_cli import ROOT, command, dcgm_file, streamer


@pytest.fixture
def broker(tmp_path):
    directory = tmp_path / "broker"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(("timestamps", "packed"), [("now", False), ("shift", False), ("original", True)])
def test_r08_a_streamer_killed_at_random_goes_on_under_the_same_addresses(tmp_path, broker, timestamps, packed):
    """The whole process group is killed again and again, with another number of workers each time. In the end every
    row has arrived once, and no address ever held two different batches."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    path = tmp_path / "a.csv"
    expected = dcgm_file(path, 12_000)
    if packed:
        subprocess.run(["gzip", str(path)], check=True)
        path = path.with_name("a.csv.gz")
    (broker / "slow").write_text("0.004")
    args = ["csv", path, "--resume", "--timestamps", timestamps, "--batch-rows", 60]
    for _ in range(4):
        arrived = len(list(broker.iterdir()))
        process = subprocess.Popen(
            command(*args, "--workers", rng.randint(1, 3), broker=broker), cwd=ROOT, start_new_session=True
        )
        eventually(lambda: len(list(broker.iterdir())) > arrived + 3, 20, "more arrives")  # noqa: B023
        time.sleep(rng.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (broker / "slow").unlink()
    done = streamer(*args, "--batch-rows", 33, "--workers", 2, broker=broker)
    assert done.returncode == 0, (seed, done.stderr)
    batches = batches_in(broker)
    assert rows_in(batches) == expected, f"seed {seed}"
    assert conflicts_in(broker) == []
    if timestamps == "now":
        assert len({int(batch.timestamp_ns[0]) for batch in batches}) == 1


def test_r08_a_finished_run_sends_nothing_again_until_a_new_pass_is_named(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 500)
    args = ["csv", tmp_path / "a.csv", "--resume"]
    assert streamer(*args, broker=broker).returncode == 0
    sent = {path.name for path in broker.iterdir()}
    again = streamer(*args, broker=broker)
    assert again.returncode == 0
    assert b"nothing is left to send" in again.stderr
    assert {path.name for path in broker.iterdir()} == sent
    assert streamer(*args, "--pass", "2", broker=broker).returncode == 0
    assert sum(batch.rows for batch in batches_in(broker)) == 1000


def test_r08_a_file_that_changed_since_is_refused_instead_of_sent_whole(tmp_path, broker):
    path = tmp_path / "a.csv"
    dcgm_file(path, 500)
    assert streamer("csv", path, "--resume", broker=broker).returncode == 0
    with path.open("a") as out:
        out.write("2025-07-18T20:42:00Z,M,0,GPU-1,h,1\n")
    done = streamer("csv", path, "--resume", broker=broker)
    assert done.returncode == 2
    assert b"has changed since --resume began" in done.stderr
    assert sum(batch.rows for batch in batches_in(broker)) == 500


def test_r08_two_streamers_do_not_resume_one_file_at_once(tmp_path, broker):
    dcgm_file(tmp_path / "a.csv", 5000)
    (broker / "stop").touch()
    process = subprocess.Popen(command("csv", tmp_path / "a.csv", "--resume", broker=broker), cwd=ROOT)
    eventually(lambda: list((tmp_path / "state" / "resume").glob("*.json")), 20, "the first has begun")
    second = streamer("csv", tmp_path / "a.csv", "--resume", broker=broker)
    assert second.returncode == 2
    assert b"another streamer is resuming this file" in second.stderr
    process.terminate()
    assert process.wait(12) == 0


def appended(path, start, count):
    """Rows written to the end of a file as an exporter would, and what they count as."""
    with path.open("a") as out:
        for i in range(start, start + count):
            out.write(f"2025-07-18T20:42:00Z,DCGM_FI_DEV_GPU_TEMP,0,GPU-{i % 97},host-1,{i}\n")
            out.flush()
    return Counter({(f"GPU-{i % 97}", "DCGM_FI_DEV_GPU_TEMP", float(i)): 1 for i in range(start, start + count)})


@pytest.mark.parametrize("timestamps", ["now", "original"])
def test_r08_a_followed_file_goes_on_through_kills_and_rotation(tmp_path, broker, timestamps):
    """Lines are written all the time, the streamer is killed again and again, and the file is rotated once while it
    runs and once while it does not. Every line arrives once, and no address ever held two different batches."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    path = tmp_path / "a.csv"
    expected = dcgm_file(path, 300)
    (broker / "slow").write_text("0.01")
    args = ["csv", path, "--follow", "--resume", "--timestamps", timestamps]

    def rotate(number):
        fresh = tmp_path / f"fresh-{number}"
        rows = dcgm_file(fresh, 50)
        os.rename(path, tmp_path / f"a.csv.{number}")
        os.rename(fresh, path)
        return rows

    process = None
    try:
        for number in range(1, 6):
            arrived = len(list(broker.iterdir()))
            line = command(*args, "--batch-rows", rng.randint(10, 30), broker=broker)
            process = subprocess.Popen(line, cwd=ROOT, start_new_session=True)
            expected += appended(path, 1000 * number, 200)
            eventually(lambda: len(list(broker.iterdir())) > arrived + 3, 30, "more arrives")  # noqa: B023
            if number == 2:
                expected += rotate(number)
            expected += appended(path, 1000 * number + 500, 100)
            time.sleep(rng.random() * 0.4)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if number == 4:
                # All of the file before is still to come: it is found by its new name.
                expected += rotate(number)
        (broker / "slow").unlink()
        process = subprocess.Popen(command(*args, broker=broker), cwd=ROOT, start_new_session=True)
        expected += appended(path, 80_000, 10)
        eventually(lambda: rows_in(batches_in(broker)) == expected, 30, f"all arrives, seed {seed}")
        process.terminate()
        assert process.wait(15) == 0
        # What is durable was written down: nothing is sent again, and what comes next is.
        process = subprocess.Popen(command(*args, broker=broker), cwd=ROOT, start_new_session=True)
        expected += appended(path, 90_000, 10)
        eventually(lambda: rows_in(batches_in(broker)) == expected, 30, f"the rest arrives, seed {seed}")
    finally:
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert conflicts_in(broker) == [], f"seed {seed}"


def test_a_followed_file_that_is_cut_short_is_read_from_its_new_beginning(tmp_path, broker):
    path = tmp_path / "a.csv"
    expected = dcgm_file(path, 300)
    process = subprocess.Popen(command("csv", path, "--follow", "--resume", broker=broker), cwd=ROOT)
    try:
        eventually(lambda: rows_in(batches_in(broker)) == expected, 30, "the first rows arrive")
        fresh = tmp_path / "fresh"
        expected += dcgm_file(fresh, 20)
        path.write_bytes(fresh.read_bytes())
        expected += appended(path, 5000, 400)
        eventually(lambda: rows_in(batches_in(broker)) == expected, 30, "the new rows arrive")
    finally:
        process.kill()
        process.wait()


def test_a_last_line_without_its_end_counts_once_the_file_is_left_for_a_new_one(tmp_path, broker):
    path = tmp_path / "a.csv"
    expected = dcgm_file(path, 10)
    with path.open("a") as out:
        out.write("2025-07-18T20:42:00Z,DCGM_FI_DEV_GPU_TEMP,0,GPU-last,host-1,5")
    process = subprocess.Popen(command("csv", path, "--follow", broker=broker), cwd=ROOT)
    try:
        eventually(lambda: rows_in(batches_in(broker)) == expected, 30, "whole lines arrive")
        os.rename(path, tmp_path / "a.csv.1")
        expected += dcgm_file(path, 20)
        expected["GPU-last", "DCGM_FI_DEV_GPU_TEMP", 5.0] += 1
        eventually(lambda: rows_in(batches_in(broker)) == expected, 30, "the last line and the new file arrive")
    finally:
        process.kill()
        process.wait()


def test_a_followed_file_that_is_gone_for_good_is_told_and_the_new_one_read(tmp_path, broker):
    path = tmp_path / "a.csv"
    expected = dcgm_file(path, 100)
    line = command("csv", path, "--follow", "--resume", "--duration", "1", broker=broker)
    assert subprocess.run(line, cwd=ROOT, timeout=60).returncode == 0
    path.unlink()
    expected += dcgm_file(path, 70)
    expected += appended(path, 1, 1)
    done = subprocess.run(line, cwd=ROOT, timeout=60, capture_output=True)
    assert done.returncode == 0
    assert b"not there any more" in done.stderr
    assert rows_in(batches_in(broker)) == expected
