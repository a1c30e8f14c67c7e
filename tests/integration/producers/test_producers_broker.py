"""Streamers and the real broker, killed at random: in the end each row of the file was delivered once."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections import Counter

from telemetry.batch import BatchDecoder
from tests.helpers.processes import ROOT, RunningProcess, free_port
from tests.helpers.producing import rows_in
from tests.helpers.waiting import eventually
from tests.integration.producers.test_producers_cli import command, dcgm_file
from zmqbroker.client import Consumer


def broker_on(tmp_path, port, name):
    args = ["serve", "--data-dir", str(tmp_path / "broker"), "--bind", f"tcp://127.0.0.1:{port}"]
    args += ["--admin-bind", f"tcp://127.0.0.1:{free_port()}", "--http", "127.0.0.1:0"]
    running = RunningProcess("zmqbroker.cli", args, tmp_path / name, name=name)
    running.wait_ready()
    return running


def delivered(url):
    """Every batch of the topic, by its address; an address that comes twice is an error."""
    decoder = BatchDecoder()
    found = {}
    consumer = Consumer(url, "gpu-telemetry", "test-r08")
    try:
        while (delivery := consumer.receive(3.0)) is not None:
            for payload in delivery.payloads():
                batch = decoder.decode(bytes(payload))
                assert (batch.session, batch.seq) not in found
                found[batch.session, batch.seq] = batch
            consumer.ack(delivery)
    finally:
        consumer.close(1)
    return list(found.values())


def test_r08_every_row_of_a_resumed_file_is_in_the_log_once_whoever_is_killed(tmp_path):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    expected = dcgm_file(tmp_path / "a.csv", 60_000)
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    line = command("csv", tmp_path / "a.csv", "--resume", "--batch-rows", 100, "--rate", 15_000, "--workers", 2)
    line += ["--connect", url, "--http", "off", "--state-dir", str(tmp_path / "state")]
    broker = broker_on(tmp_path, port, "broker-0")
    streamer = None
    try:
        for round_ in range(1, 4):
            streamer = subprocess.Popen(line, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
            time.sleep(1.2 + rng.random())
            if rng.random() < 0.7:
                broker.kill()
                time.sleep(rng.random() * 0.5)
                broker = broker_on(tmp_path, port, f"broker-{round_}")
            os.killpg(streamer.pid, signal.SIGKILL)
            streamer.wait()
        streamer = subprocess.Popen(line, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        assert streamer.wait(60) == 0, f"seed {seed}"
        assert rows_in(delivered(url)) == expected, f"seed {seed}"
    finally:
        if streamer is not None and streamer.poll() is None:
            os.killpg(streamer.pid, signal.SIGKILL)
        broker.kill()


def test_a_live_source_loses_nothing_while_the_broker_is_away(tmp_path):
    """The exporter look-alike is scraped every 100 ms; the broker is killed for a while. Every scrape arrives once."""
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    broker = broker_on(tmp_path, port, "broker-0")
    exporter = RunningProcess(
        "producers.cli",
        ["simulate", "--exporter", "127.0.0.1:0", "--hosts", "1", "--http", "off"],
        tmp_path / "exporter",
        name="exporter",
    )
    agent = None
    try:
        address = exporter.wait_for_line("exporter listening")["address"]
        args = ["dcgm", address, "--interval", "100ms", "--connect", url, "--http", "127.0.0.1:0"]
        agent = RunningProcess(
            "producers.cli", [*args, "--state-dir", str(tmp_path / "state")], tmp_path / "agent", name="agent"
        )
        agent.wait_ready()
        broker.kill()
        agent.wait_for_line("nothing was acknowledged; rows go to the spool", 20)
        time.sleep(1)
        broker = broker_on(tmp_path, port, "broker-1")
        agent.wait_for_line("the broker takes batches again", 20)
        eventually(lambda: agent.popen.poll() is None and time.sleep(2) is None, 10, "it goes on")
        assert agent.stop() == 0
        ended = agent.wait_for_line("ended")
        assert ended["spooled_rows"] == 0
        batches = delivered(url)
        per_time = Counter(int(time_ns) for batch in batches for time_ns in batch.timestamp_ns.tolist())
        assert sum(per_time.values()) == ended["rows"]
        assert set(per_time.values()) == {80}
        times = sorted(per_time)
        assert max(b - a for a, b in itertools.pairwise(times)) < 1.5e9
    finally:
        for process in (agent, exporter, broker):
            if process is not None:
                process.kill()
