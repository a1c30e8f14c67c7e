"""The logs of the real processes: one batch can be followed through all of them, and no secret stands in any.

Everything is on at once: a password at the store, CURVE keys at the broker, API keys, level debug.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from api.cli import main as api_command
from tests.helpers.processes import ROOT, RunningProcess, free_port
from tests.helpers.waiting import eventually
from zmqbroker.security import load_public, make_keys

pytestmark = pytest.mark.timeout(180)
SAMPLE = ROOT / "producers" / "sample" / "dcgm_sample.csv"
REQUEST_ID = "follow-me-0001"


class Stack:
    """Store, broker, collector, API and a streamer with every secret that they can have, at one log level."""

    def __init__(self, directory: Path, level: str, running: ExitStack, capsys: Any) -> None:
        self.directory = directory
        self.password = f"pa'ss-{secrets.token_hex(12)}"
        self.secrets = [self.password]
        self.keys = directory / "keys"
        for name in ("broker", "client"):
            make_keys(name, self.keys)
            file = (self.keys / f"{name}.key_secret").read_text()
            found = re.search(r'secret-key = "(.{40})"', file)
            assert found
            self.secrets.append(found[1])
        public = load_public(str(self.keys / "client.key")).decode()
        (self.keys / "allow").write_text(f"{public} produce,consume,admin client\n")
        self.api_key = self._api_key(capsys)
        self.env = {"LOG_LEVEL": level, "LOG_FORMAT": "json", "CLICKHOUSE_PASSWORD": self.password}
        self.running = running
        self._start()

    def _api_key(self, capsys: Any) -> str:
        assert api_command(["new-key", "tester", "--scopes", "read,write"]) == 0
        words = capsys.readouterr().out.split()
        line = next(i for i, word in enumerate(words) if word == "tester")
        (self.keys / "api").write_text(" ".join(words[line : line + 3]) + "\n")
        key = next(word for word in words[:line] + words[line + 3 :] if len(word) > 25)
        self.secrets.append(key)
        return key

    def start(self, module: str, *args: str | Path, name: str) -> RunningProcess:
        words = [str(arg) for arg in args]
        return self.running.enter_context(
            RunningProcess(module, words, self.directory / "logs", name=name, env=self.env)
        )

    def _start(self) -> None:
        self.data = f"tcp://127.0.0.1:{free_port()}"
        admin = f"tcp://127.0.0.1:{free_port()}"
        page, keys = ("--http", "127.0.0.1:0"), self.keys
        self.client = ("--curve-key", keys / "client.key_secret", "--server-key", keys / "broker.key")
        store = self.start(
            *("clickhouse.cli", "serve", "--migrate", "--data-dir", self.directory / "store", *page),
            *("--password", self.password),
            name="store",
        )
        self.broker = self.start(
            *("zmqbroker.cli", "serve", "--data-dir", self.directory / "broker", *page),
            *("--bind", self.data, "--admin-bind", admin, "--curve-key", keys / "broker.key_secret"),
            *("--allow-list", keys / "allow"),
            name="broker",
        )
        url = store.wait_ready()
        # The password is in the URL on purpose: that, too, must not get out.
        with_password = url.replace("://", f"://default:{urllib.request.quote(self.password)}@")
        self.collector = self.start(
            *("consumers.cli", "--connect", self.data, "--clickhouse", url, *self.client, *page), name="collector"
        )
        self.api = self.start(
            *("api.cli", "--connect", self.data, "--clickhouse", url, *self.client, *page),
            *("--keys-file", keys / "api"),
            name="api",
        )
        self.url = self.api.wait_ready()
        self.collector.wait_ready()
        refused = self.start("consumers.cli", "--connect", self.data, "--clickhouse", with_password, *page, name="url")
        eventually(
            lambda: refused.popen.poll() is not None or refused.lines(), 20, "the other collector says something"
        )

    def request(self, path: str, body: bytes | None = None, key: str | None = None) -> int:
        headers = {"X-Api-Key": key or self.api_key, "X-Request-Id": REQUEST_ID, "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=20) as answer:
                answer.read(1 << 16)
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def play(self) -> list[dict[str, Any]]:
        """The sample, once; returns the streamer's lines."""
        streamer = self.start(
            *("producers.cli", "csv", SAMPLE, "--connect", self.data, *self.client, "--http", "off"),
            *("--state-dir", self.directory / "streamer", "--workers", "1", "--batch-rows", "500"),
            name="streamer",
        )
        assert streamer.popen.wait(60) == 0, streamer.log_path.read_text()[-2000:]
        return streamer.lines()

    def listen(self) -> None:
        """A live tail by a key in the address, as browsers do, so that the API sees batches pass."""

        def read() -> None:
            try:
                with urllib.request.urlopen(f"{self.url}/api/v1/stream?api_key={self.api_key}", timeout=30) as answer:
                    while answer.read(1):
                        pass
            except (OSError, ValueError, http.client.HTTPException):
                return

        threading.Thread(target=read, daemon=True).start()

    def check_no_secret(self) -> None:
        logs = sorted((self.directory / "logs").glob("*.log"))
        assert len(logs) >= 6
        for log in logs:
            text = log.read_text("utf-8", "replace")
            assert text, f"{log.name} is empty: nothing is shown by it"
            for secret in self.secrets:
                for form in {secret, json.dumps(secret)[1:-1], urllib.request.quote(secret)}:
                    assert form not in text, f"{log.name} tells a secret"


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def about(lines: list[dict[str, Any]], msg: str, **fields: Any) -> list[dict[str, Any]]:
    return [line for line in lines if line["msg"] == msg and all(line.get(k) == v for k, v in fields.items())]


def test_one_batch_is_followed_through_every_process_and_no_log_tells_a_secret(
    tmp_path: Path, running: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(tmp_path, "debug", running, capsys)
    stack.listen()
    eventually(lambda: about(stack.broker.lines(), "listening"), 10, "the broker has a log")
    sent = stack.play()
    published = about(sent, "batch published")
    assert len(published) > 1
    batch = published[0]
    address = {"session": batch["session"], "seq": batch["seq"]}
    assert batch["component"] == "producers.publisher"
    assert len(about(sent, "batch acknowledged", **address)) == 1

    taken = eventually(lambda: about(stack.broker.lines(), "batch taken", **address), 10, "the broker took it")
    assert len(taken) == 1
    assert taken[0]["rows"] == batch["rows"]
    place = {name: taken[0][name] for name in ("topic", "partition", "offset")}
    stored = eventually(
        lambda: about(stack.collector.lines(), "batch stored", **address, **place), 20, "the collector stored it there"
    )
    assert stored[0]["first"] <= place["offset"] <= stored[0]["last"]
    assert stored[0]["attempt"] == 1
    assert about(stack.collector.lines(), "batch stored", **place) == stored

    # What is written through the API is found by the id of its request.
    body = b'[{"metric_name": "gpu_temp", "value": 41, "gpu_id": "GPU-followed"}]'
    assert stack.request("/api/v1/telemetry", body) == 202
    (written,) = about(stack.api.lines(), "batch published", request_id=REQUEST_ID)
    address = {"session": written["session"], "seq": written["seq"]}
    (taken_2,) = about(stack.broker.lines(), "batch taken", **address)
    place_2 = {name: taken_2[name] for name in ("topic", "partition", "offset")}
    eventually(lambda: about(stack.collector.lines(), "batch stored", **address, **place_2), 20, "it is stored, too")
    eventually(lambda: about(stack.api.lines(), "batch seen live", **address, **place_2), 20, "and seen live")
    assert about(stack.api.lines(), "request", request_id=REQUEST_ID, status=202)

    assert stack.request("/api/v1/gpus", key="wrong-key-that-is-long-enough") == 401
    stack.check_no_secret()


def test_at_info_no_line_is_written_a_message(
    tmp_path: Path, running: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(tmp_path, "info", running, capsys)

    def written() -> int:
        return len(stack.broker.lines()) + len(stack.collector.lines()) + len(stack.api.lines())

    before = written()
    lines = stack.play()
    body = b'[{"metric_name": "gpu_temp", "value": 41, "gpu_id": "GPU-quiet"}]'
    assert [stack.request("/api/v1/telemetry", body) for _ in range(20)] == [202] * 20
    assert about(lines, "all acknowledged")
    assert [line for line in lines if "seq" in line] == []
    assert written() - before <= 3, "more lines than a topic that is made, and its like"
    stack.check_no_secret()
