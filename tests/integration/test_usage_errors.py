"""Every command, used wrongly: one line on stderr that names the thing, and exit code 2. Nothing is left running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, RunningProcess, free_port

# command -> module and the arguments with which it would start
COMMANDS = {
    "broker": ("zmqbroker.cli", ["serve", "--data-dir", "{tmp}/broker"]),
    "store": ("clickhouse.cli", ["serve", "--data-dir", "{tmp}/store"]),
    "collector": ("consumers.cli", []),
    "streamer": ("producers.cli", ["csv", "{tmp}/some.csv", "--state-dir", "{tmp}"]),
    "api": ("api.cli", []),
}


def use(module: str, args: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *args]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "API_", "STORE_"))}
    return subprocess.run(
        command, cwd=ROOT, env={**kept, **(env or {})}, capture_output=True, text=True, timeout=60, check=False
    )


def with_each_command(tmp_path: Path, *extra: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command with further arguments, two at a time."""
    (tmp_path / "some.csv").write_text("timestamp,metric_name,gpu_id,uuid,value\n")
    with ThreadPoolExecutor(2) as pool:
        runs = {
            name: pool.submit(use, module, [arg.format(tmp=tmp_path) for arg in args] + list(extra))
            for name, (module, args) in COMMANDS.items()
        }
        return {name: run.result() for name, run in runs.items()}


def assert_refused(name: str, done: subprocess.CompletedProcess[str], *named: str) -> None:
    assert done.returncode == 2, f"{name}: {done}"
    last = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(last) == 1, f"{name}: more than one line: {done.stderr}"
    for part in named:
        assert part in last[0], f"{name}: {part!r} is not named in: {last[0]}"


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    for name, done in with_each_command(tmp_path, "--no-such-option").items():
        assert_refused(name, done, "--no-such-option")


def test_a_bad_value_is_named_with_its_option(tmp_path: Path) -> None:
    for name, done in with_each_command(tmp_path, "--drain-timeout", "soon").items():
        assert_refused(name, done, "--drain-timeout", "'soon'")


def test_an_http_address_in_use_is_named(tmp_path: Path, taken: str) -> None:
    runs = with_each_command(tmp_path, "--http", taken)
    for name, done in runs.items():
        assert_refused(name, done, taken, "in use")


def test_beyond_loopback_no_command_listens_without_keys(tmp_path: Path) -> None:
    for name, done in with_each_command(tmp_path, "--http", "0.0.0.0:0").items():
        assert_refused(name, done, "0.0.0.0:0", "--insecure")


def test_the_brokers_own_sockets_are_named_when_they_cannot_be_bound(tmp_path: Path, taken: str) -> None:
    serve = ["serve", "--data-dir", str(tmp_path / "data"), "--http", "127.0.0.1:0"]
    free = f"tcp://127.0.0.1:{free_port()}"
    assert_refused("broker", use("zmqbroker.cli", [*serve, "--bind", f"tcp://{taken}", "--admin-bind", free]), taken)
    assert_refused("broker", use("zmqbroker.cli", [*serve, "--bind", "tcp://0.0.0.0:0"]), "0.0.0.0", "--insecure")


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("zmqbroker.cli", ["serve", "--bind", "tcp://127.0.0.1:{a}", "--admin-bind", "tcp://127.0.0.1:{b}"]),
        ("clickhouse.cli", ["serve"]),
    ],
)
def test_a_data_directory_that_another_process_holds_is_named(tmp_path: Path, module: str, args: list[str]) -> None:
    data = tmp_path / "data"

    def serve() -> list[str]:
        ports = {"a": free_port(), "b": free_port()}
        return [*(arg.format(**ports) for arg in args), "--data-dir", str(data), "--http", "127.0.0.1:0"]

    with RunningProcess(module, serve(), tmp_path, name="first") as first:
        first.wait_ready()
        assert_refused(module, use(module, serve()), str(data))
        assert first.stop() == 0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "No such file"),
        (b"a,b\n1,2\n", "column"),
        (b"", "empty"),
    ],
)
def test_a_csv_file_that_cannot_be_played_is_named(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = tmp_path / "input.csv"
    if content is not None:
        path.write_bytes(content)
    done = use("producers.cli", ["csv", str(path), "--http", "127.0.0.1:0", "--state-dir", str(tmp_path)])
    assert_refused("streamer", done, str(path))
    assert named.lower() in done.stderr.lower()
