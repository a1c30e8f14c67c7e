"""telemetry-api as a process with the real broker and store: streams, writing, draining, and being alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import websocket

from tests.helpers.processes import ROOT, RunningProcess, free_port, get_json
from tests.helpers.waiting import eventually

GPU = "GPU-live"


class Pipeline:
    """Store, broker, collector and API, on free ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broker_port, self.broker_http = free_port(), free_port()
        self.running: list[RunningProcess] = []
        store = self.start(
            "clickhouse.cli",
            "store",
            "serve",
            "--migrate",
            "--data-dir",
            str(directory / "store"),
            "--http",
            "127.0.0.1:0",
        )
        self.store = store.wait_ready()
        self.broker_process = self.start_broker()
        self.start(
            "consumers.cli", "collector", "--connect", self.broker, "--clickhouse", self.store, "--http", "127.0.0.1:0"
        )
        self.api_process = self.start(
            "api.cli", "api", "--connect", self.broker, "--clickhouse", self.store,
            "--broker-http", f"http://127.0.0.1:{self.broker_http}", "--http", "127.0.0.1:0", "--publish-timeout", "3s",
        )  # fmt: skip
        self.api = self.api_process.wait_ready()

    @property
    def broker(self) -> str:
        return f"tcp://127.0.0.1:{self.broker_port}"

    def start(self, module: str, name: str, *args: str) -> RunningProcess:
        process = RunningProcess(module, args, self.directory, name=name)
        self.running.append(process)
        return process

    def start_broker(self) -> RunningProcess:
        return self.start(
            "zmqbroker.cli", "broker", "serve", "--data-dir", str(self.directory / "broker"), "--bind", self.broker,
            "--admin-bind", f"tcp://127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{self.broker_http}",
        )  # fmt: skip

    def write(self, value: float, **headers: str) -> Any:
        body = json.dumps([{"metric_name": "gpu_temp", "value": value, "gpu_id": GPU}]).encode()
        request = urllib.request.Request(
            f"{self.api}/api/v1/telemetry", body, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def end(self) -> None:
        for process in reversed(self.running):
            process.kill()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    found = Pipeline(tmp_path_factory.mktemp("pipeline"))
    yield found
    found.end()


class Stream(threading.Thread):
    """Reads server-sent events until told to stop."""

    def __init__(self, url: str, last_event_id: str = "") -> None:
        super().__init__(daemon=True)
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self.answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.ended = False
        self.start()

    def run(self) -> None:
        event_id = ""
        for line in self.answer:
            if line.startswith(b"id:"):
                event_id = line[3:].strip().decode()
            if line.startswith(b"data:"):
                self.events.append((time.monotonic(), event_id, json.loads(line[5:])))
        self.ended = True

    def values(self) -> list[float]:
        return [row["value"] for _, _, data in self.events for row in data.get("telemetry", [])]


def test_what_is_written_is_seen_live_within_a_second_and_can_be_read_soon_after(pipeline: Pipeline) -> None:
    stream = Stream(f"{pipeline.api}/api/v1/stream?gpu_id={GPU}")
    socket_ = websocket.create_connection(
        pipeline.api.replace("http", "ws") + f"/api/v1/ws?gpu_id={GPU}&metric_name=gpu_temp", timeout=10
    )
    # The subscription begins at the end of the log: it must be there before the row.
    eventually(lambda: pipeline.write(0)[0] == 202 and stream.events, 15, "the live subscription stands", 0.3)
    stream.events.clear()
    sent = time.monotonic()
    status, document = pipeline.write(41.5)
    assert (status, document["status"]) == (202, "done")
    eventually(lambda: 41.5 in stream.values(), 5, "the row comes down the stream")
    assert stream.events[-1][0] - sent < 1.0
    while True:
        message = json.loads(socket_.recv())
        if message["event"] == "telemetry" and message["data"]["telemetry"][0]["value"] == 41.5:
            break
    socket_.close()

    def stored() -> bool:
        answer = get_json(f"{pipeline.api}/api/v1/gpus/{GPU}/telemetry?order=desc&page_size=1")
        return bool(answer.get("telemetry")) and answer["telemetry"][0]["value"] == 41.5

    eventually(stored, 10, "the row can be read")
    # Coming back with the last id gives what came in between, and nothing twice.
    last_id = stream.events[-1][1]
    pipeline.write(42.5)
    back = Stream(f"{pipeline.api}/api/v1/stream?gpu_id={GPU}", last_event_id=last_id)
    eventually(lambda: 42.5 in back.values(), 5, "the missed row comes first")
    assert 41.5 not in back.values()


def test_an_uploaded_file_is_stored_whole_and_a_repeat_changes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    lines = ["timestamp,metric_name,uuid,Hostname,value"]
    lines += [
        f"2025-07-18T20:42:{n % 60:02d}Z,DCGM_FI_DEV_GPU_UTIL,GPU-up{n % 10},host-up,{n % 100}" for n in range(5000)
    ]
    lines.insert(3, "broken")
    path = tmp_path / "up.csv"
    path.write_text("\n".join(lines))

    def upload() -> dict[str, Any]:
        answer = urllib3.request(
            "POST",
            f"{pipeline.api}/api/v1/csv/upload",
            fields={"file": (path.name, path.read_bytes())},
            headers={"Idempotency-Key": "up-1"},
        )
        assert answer.status == 202, answer.data
        return dict(answer.json())

    first = upload()

    def done() -> dict[str, Any] | None:
        found = get_json(f"{pipeline.api}/api/v1/csv/uploads/{first['id']}")
        return found if found["status"] in ("done", "failed") else None

    found = eventually(done, 20, "the upload ends")
    assert found is not None
    assert found["message"] == ""
    assert (found["status"], found["durable_rows"], found["rejected_rows"]) == ("done", 5000, 1)
    assert found["errors"][0]["line"] == 4
    again = upload()
    assert again["id"] == first["id"]
    count = f"{pipeline.api}/api/v1/telemetry?hostname=host-up&page_size=1"
    eventually(lambda: get_json(count)["total"] == 5000, 10, "all rows are stored")
    time.sleep(0.5)
    assert get_json(count)["total"] == 5000


def test_without_the_broker_reading_goes_on_and_writing_says_503_until_it_is_back(pipeline: Pipeline) -> None:
    pipeline.write(1)
    eventually(lambda: GPU in str(get_json(f"{pipeline.api}/api/v1/gpus")), 10, "the GPU is listed")
    pipeline.broker_process.stop()
    eventually(lambda: get_json(f"{pipeline.api}/health")["status"] == "degraded", 10, "health tells of it")
    assert get_json(f"{pipeline.api}/readyz") == {"status": "ready"}
    assert get_json(f"{pipeline.api}/api/v1/gpus")["total"] > 0
    began = time.monotonic()
    status, document = pipeline.write(2)
    assert status == 503
    assert "try again" in document["detail"]
    assert time.monotonic() - began < 8
    pipeline.broker_process = pipeline.start_broker()
    eventually(lambda: pipeline.write(3)[0] == 202, 20, "writing works again", 0.3)


def test_sigterm_ends_streams_and_finishes_what_is_being_answered(pipeline: Pipeline, tmp_path: Path) -> None:
    api = RunningProcess(
        "api.cli", ["--clickhouse", pipeline.store, "--connect", pipeline.broker, "--broker-http", "http://127.0.0.1:1", "--http", "127.0.0.1:0"],
        tmp_path, name="api-2",
    )  # fmt: skip
    with api:
        base = api.wait_ready()
        stream = Stream(f"{base}/api/v1/stream")
        with urllib.request.urlopen(f"{base}/api/v1/telemetry?format=csv") as export:
            first = export.read(10)
            began = time.monotonic()
            api.popen.terminate()
            rest = export.read()
        assert (first + rest).startswith(b"timestamp,gpu_id")
        assert rest.endswith(b"\n")
        assert api.popen.wait(12) == 0
        assert time.monotonic() - began < 8
        eventually(lambda: stream.ended, 5, "the stream was ended")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http", "127.0.0.1:{taken}"], "in use"),
        (["--http", "0.0.0.0:0"], "without keys"),
        (["--threads", "none"], "whole number"),
        (["--rate-limit", "fast"], "no rate"),
        (["--keys-file", "/nowhere"], "cannot be read"),
        (["--tls-cert", "/nowhere"], "belong together"),
        (["--rules-file", "/nowhere", "--http", "127.0.0.1:0"], "cannot be read"),
        (["--unknown"], "--unknown"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = [argument.format(taken=taken.getsockname()[1]) for argument in arguments]
        ended = subprocess.run(
            [sys.executable, "-m", "api.cli", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
