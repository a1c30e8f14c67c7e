"""R8: a resumed file run continues after any end, without gap or repeat."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

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
