"""The processes' own key options, against a broker that asks for keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.options import UsageError
from tests.helpers.processes import RunningProcess, free_port
from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer, Producer
from zmqbroker.client.options import client_keys
from zmqbroker.security import make_keys


def test_with_keys_only_clients_on_the_allow_list_get_in(tmp_path: Path) -> None:
    make_keys("broker", tmp_path)
    for name in ("agent", "stranger"):
        make_keys(name, tmp_path)
    public = (tmp_path / "agent.key").read_text()
    key = next(line.split('"')[1] for line in public.splitlines() if "public-key" in line)
    (tmp_path / "allow").write_text(f"{key} produce,consume agent\n")
    url = f"tcp://127.0.0.1:{free_port()}"
    arguments = ["serve", "--data-dir", tmp_path / "data", "--bind", url, "--http", "127.0.0.1:0"]
    arguments += ["--admin-bind", f"tcp://127.0.0.1:{free_port()}"]
    arguments += ["--curve-key", tmp_path / "broker.key_secret", "--allow-list", tmp_path / "allow"]
    with RunningProcess("zmqbroker.cli", [str(a) for a in arguments], tmp_path / "logs") as broker:
        broker.wait_ready()
        known = client_keys(tmp_path / "agent.key_secret", str(tmp_path / "broker.key"))
        with Producer(url, "t", keys=known) as producer, Consumer(url, "t", "g", keys=known) as consumer:
            receipt = producer.publish(b"sealed", rows=1)
            assert receipt.wait(10)
            delivery = consumer.receive(10)
            assert delivery is not None
            assert bytes(delivery.payloads()[0]) == b"sealed"
            consumer.ack(delivery)
        stranger = client_keys(tmp_path / "stranger.key_secret", str(tmp_path / "broker.key"))
        for keys in (stranger, None):
            outside = Producer(url, "t", keys=keys)
            outside.publish(b"let me in", rows=1)
            assert not outside.flush(1.0)
            assert not outside.stats.connected
            outside.close(0)


def test_one_key_without_the_other_is_told(tmp_path: Path) -> None:
    make_keys("agent", tmp_path)
    with pytest.raises(UsageError, match="go together"):
        client_keys(tmp_path / "agent.key_secret", "")
    with pytest.raises(UsageError, match="nowhere"):
        client_keys(tmp_path / "nowhere.key_secret", "x" * 40)


def test_the_streamer_publishes_with_its_key(tmp_path: Path, root: Path) -> None:
    for name in ("broker", "agent"):
        make_keys(name, tmp_path)
    key = next(line.split('"')[1] for line in (tmp_path / "agent.key").read_text().splitlines() if "public-key" in line)
    (tmp_path / "allow").write_text(f"{key} produce agent\n")
    url = f"tcp://127.0.0.1:{free_port()}"
    arguments = ["serve", "--data-dir", tmp_path / "data", "--bind", url, "--http", "127.0.0.1:0"]
    arguments += ["--admin-bind", f"tcp://127.0.0.1:{free_port()}"]
    arguments += ["--curve-key", tmp_path / "broker.key_secret", "--allow-list", tmp_path / "allow"]
    with RunningProcess("zmqbroker.cli", [str(a) for a in arguments], tmp_path / "logs") as broker:
        broker.wait_ready()
        play = ["csv", root / "producers" / "sample" / "dcgm_sample.csv", "--connect", url, "--http", "off"]
        play += ["--state-dir", tmp_path / "state", "--workers", "1"]
        play += ["--curve-key", tmp_path / "agent.key_secret", "--server-key", tmp_path / "broker.key"]
        with RunningProcess("producers.cli", [str(a) for a in play], tmp_path / "logs") as streamer:
            eventually(lambda: streamer.popen.poll() is not None, timeout=60, what="the streamer ends")
            assert streamer.popen.returncode == 0
