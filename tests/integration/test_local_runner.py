"""The local runner with stand-ins for the programs: what it does when they die, refuse, drain and hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, free_port
from tests.helpers.waiting import eventually

PROGRAMS = ("telemetry-clickhouse", "zmqbroker", "telemetry-collector", "telemetry-api", "telemetry-streamer")
PORTS = ("BROKER", "ADMIN", "BROKER_HTTP", "STREAMER", "COLLECTOR_1", "COLLECTOR_2", "ROLLUP", "STORE", "API")

STAND_IN = """#!{python}
import http.server, os, pathlib, signal, sys, threading, time
name = pathlib.Path(sys.argv[0]).name
if "rollup" in sys.argv:
    sys.exit(2)
here = pathlib.Path(sys.argv[0]).parent
print("started", os.getpid(), " ".join(sys.argv[1:]), flush=True)
if (here / (name + ".refuses")).exists():
    print("--flag: 'x' is not good", flush=True)
    sys.exit(2)
def stop(number, frame):
    print("stopping by", signal.Signals(number).name, flush=True)
    if (here / (name + ".hangs")).exists():
        return
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if name == "telemetry-api":
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
        def log_message(self, *args): pass
    address = sys.argv[sys.argv.index("--http") + 1].split(":")
    server = http.server.HTTPServer((address[0], int(address[1])), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    time.sleep(60)
"""


class Runner:
    """A started run.py; ``output()`` is what it printed so far."""

    def __init__(self, directory: Path, *extra: str) -> None:
        self.bin = directory / "bin"
        self.log = directory / f"run-{time.monotonic_ns()}.log"
        self.ports = {f"PORT_{name}": str(free_port()) for name in PORTS}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "deploy/local/run.py", "run", "--data", str(directory / "data"), *extra]
                + ["--bin", str(self.bin)],
                cwd=ROOT,
                env={**os.environ, **self.ports},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text()

    def wait_ready(self) -> None:
        eventually(lambda: "ready: dashboard" in self.output(), 20, self.output())

    def pid(self, name: str) -> int:
        """Process id of the last start of that program."""
        return int(re.findall(rf"^{name} +\| started (\d+)", self.output(), re.M)[-1])

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"\| started (\d+)", self.output())]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        path = tmp_path / "bin" / program
        path.write_text(STAND_IN.format(python=sys.executable))
        path.chmod(0o755)
    (tmp_path / "some.csv").write_text("timestamp\n")
    return tmp_path


Start = Callable[[], Runner]


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts a runner on the test's directory; whatever becomes of the test, it ends (and takes its programs along)."""
    started: list[Runner] = []

    def one() -> Runner:
        started.append(Runner(directory, "--csv", str(directory / "some.csv")))
        return started[-1]

    yield one
    for runner in started:
        if runner.popen.poll() is None:
            runner.popen.kill()
            runner.popen.wait()


@pytest.fixture
def runner(start: Start) -> Runner:
    return start()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_ctrl_c_stops_the_programs_in_the_order_of_the_data_and_each_of_them_once(runner: Runner) -> None:
    runner.wait_ready()
    assert f"dashboard http://127.0.0.1:{runner.ports['PORT_API']}/" in runner.output()
    os.killpg(runner.popen.pid, signal.SIGINT)  # as a terminal does
    assert runner.popen.wait(12) == 0
    stopped = re.findall(r"^(\S+) +\| stopping by (\w+)", runner.output(), re.M)
    assert sorted(stopped) == sorted(
        (name, "SIGTERM") for name in ("streamer", "api", "collector-1", "collector-2", "broker", "store")
    )
    order = [name for name, _ in stopped]
    assert order[:2] == ["streamer", "api"]
    assert order[-2:] == ["broker", "store"]
    assert not any(alive(pid) for pid in runner.pids())


def test_a_program_that_dies_is_started_again(runner: Runner) -> None:
    runner.wait_ready()
    first = runner.pid("broker")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: runner.pid("broker") != first, 10, "the broker has another process id")
    runner.popen.send_signal(signal.SIGTERM)
    assert runner.popen.wait(12) == 0


def test_a_program_that_hangs_is_killed_and_all_is_over_within_12_seconds(directory: Path, start: Start) -> None:
    (directory / "bin" / "telemetry-collector.hangs").touch()
    runner = start()
    runner.wait_ready()
    started = time.monotonic()
    runner.popen.send_signal(signal.SIGINT)
    assert runner.popen.wait(13) == 0
    assert time.monotonic() - started < 12
    assert "collector-1 did not end in time: killed" in runner.output()
    assert not any(alive(pid) for pid in runner.pids())


def test_a_usage_error_of_one_program_ends_everything_with_exit_code_2(directory: Path, start: Start) -> None:
    (directory / "bin" / "telemetry-streamer.refuses").touch()
    runner = start()
    assert runner.popen.wait(20) == 2
    assert "--flag: 'x' is not good" in runner.output()
    assert "streamer cannot run like this" in runner.output()
    assert not any(alive(pid) for pid in runner.pids())


def test_a_second_runner_on_the_same_data_is_refused_and_stop_ends_the_first(
    runner: Runner, directory: Path, start: Start
) -> None:
    runner.wait_ready()
    second = start()
    assert second.popen.wait(10) == 2
    assert f"is in use by process {runner.popen.pid}; stop it first" in second.output()
    stop = [sys.executable, "deploy/local/run.py", "stop", "--data", str(directory / "data")]
    assert subprocess.run(stop, cwd=ROOT, check=False).returncode == 0
    assert runner.popen.wait(1) == 0


def test_a_killed_runner_takes_its_programs_along(runner: Runner) -> None:
    runner.wait_ready()
    runner.popen.kill()
    runner.popen.wait()
    eventually(lambda: not any(alive(pid) for pid in runner.pids()), 15, "every program has ended")


@pytest.mark.parametrize(
    ("extra", "environ", "message"),
    [
        (["--csv", "missing.csv"], {}, "missing.csv: no such file"),
        ([], {"PORT_BASE": "many"}, "PORT_BROKER (broker): 'many' gives no port between 1 and 65535"),
        ([], {"PORT_API": "0"}, "PORT_API (API and dashboard): '0' gives no port between 1 and 65535"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    tmp_path: Path, extra: list[str], environ: dict[str, str], message: str
) -> None:
    (tmp_path / "some.csv").touch()
    command = [sys.executable, "deploy/local/run.py", "run", "--data", str(tmp_path)]
    done = subprocess.run(
        [*command, *(extra or ["--csv", str(tmp_path / "some.csv")])],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
