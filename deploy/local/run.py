"""The whole pipeline on this machine, in the foreground: what ``make run``, ``make services`` and ``make stop`` call.

supervisord (``supervisord.conf`` beside this file) starts the programs and starts again what dies. This script gives
it ports and directories, shows every program's log with its name in front, says when the dashboard is there, and on
Ctrl-C stops the programs in the order in which data flows, so that each finds its next one still there while it drains.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import xmlrpc.client  # nosec B411
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from supervisor.xmlrpc import SupervisorTransport

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
SAMPLE: Final = ROOT / "producers" / "sample" / "dcgm_sample.csv"

# name of the environment variable, default port, what listens there
PORTS: Final = (
    ("PORT_BROKER", 5555, "broker"),
    ("PORT_ADMIN", 5556, "broker, admin"),
    ("PORT_BROKER_HTTP", 9090, "broker, HTTP"),
    ("PORT_STREAMER", 8081, "streamer"),
    ("PORT_COLLECTOR_1", 8082, "collector 1"),
    ("PORT_COLLECTOR_2", 8083, "collector 2"),
    ("PORT_ROLLUP", 8084, "rollup"),
    ("PORT_STORE", 8123, "store"),
    ("PORT_API", 8080, "API and dashboard"),
)

STAGES: Final = (("streamer",), ("api", "rollup"), ("collector-1", "collector-2"), ("broker",), ("store",))
"""The order of stopping. Starting needs none: every program waits for what it needs."""

STAGE_WAIT_S: Final = (3.0, 4.0, 8.0, 9.0, 10.0)
"""Seconds after Ctrl-C by which the next stage is told to stop, even if this one has not ended yet."""

KILL_AFTER_S: Final = 10.7
STOPPED_STATES: Final = frozenset({"STOPPED", "EXITED", "FATAL", "UNKNOWN"})
USAGE_ERROR: Final = re.compile(r"exited: (\S+) \(exit status 2;")
COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95)
PR_SET_PDEATHSIG: Final = 1


def fail(message: str) -> NoReturn:
    """One line on stderr and exit code 2."""
    print(f"run: {message}", file=sys.stderr)
    raise SystemExit(2)


def ports(environ: Mapping[str, str]) -> dict[str, str]:
    """Ports by variable: the variable itself, else counted from ``PORT_BASE``, else the default."""
    base = environ.get("PORT_BASE", "")
    chosen = {}
    for offset, (name, default, what) in enumerate(PORTS):
        text = environ.get(name) or (str(int(base) + offset) if base.isdecimal() else str(default))
        if not text.isdecimal() or not 0 < int(text) < 65536 or (base and not base.isdecimal()):
            fail(f"{name} ({what}): {environ.get(name) or base!r} gives no port between 1 and 65535")
        chosen[name] = text
    return chosen


def refuse_taken_ports(chosen: Mapping[str, str]) -> None:
    """Say it here, once: a program that cannot listen would only be started again and again."""
    for name, _, what in PORTS:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", int(chosen[name])))
            except OSError as error:
                fail(
                    f"127.0.0.1:{chosen[name]} ({what}): {error.strerror}; "
                    f"stop what uses it, or choose others: {name}=port, or PORT_BASE=20000 for all"
                )


class Lock:
    """One runner a data directory; the file holds its process id, for ``stop``."""

    def __init__(self, data: Path) -> None:
        self.path = data / "run.pid"
        self._fd = -1

    def take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{self.path.parent} is in use by process {self.holder()}; stop it first (make stop)")
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def holder(self) -> int | None:
        """Process id of the runner that holds the directory now."""
        try:
            with self.path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except OSError:
            pass
        return None


class LogPrinter(threading.Thread):
    """Reads each program's named pipe and prints its lines with the name in front."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        super().__init__(name="logs", daemon=True)
        self._width = max(map(len, names))
        self._colour = sys.stdout.isatty()
        self._selector = selectors.DefaultSelector()
        self._rest = dict.fromkeys(names, b"")
        self.refused: list[str] = []
        for name in names:
            os.mkfifo(directory / name)
            # Opened for writing too: so it is open before supervisord is, and never at its end.
            fd = os.open(directory / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._selector.register(fd, selectors.EVENT_READ, name)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                with contextlib.suppress(BlockingIOError):
                    self._take(key.data, os.read(key.fd, 65536))

    def drain(self) -> None:
        """Wait until what was written is printed, at most half a second."""
        until = time.monotonic() + 0.5
        while self._selector.select(0) and time.monotonic() < until:
            time.sleep(0.02)

    def say(self, name: str, text: str) -> None:
        label = f"{name:<{self._width}} |"
        if self._colour:
            label = f"\x1b[{COLOURS[list(self._rest).index(name) % len(COLOURS)]}m{label}\x1b[0m"
        print(label, text, flush=True)

    def _take(self, name: str, data: bytes) -> None:
        *lines, self._rest[name] = (self._rest[name] + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            if name == "runner":
                self._supervisord_said(text)
            else:
                self.say(name, text)

    def _supervisord_said(self, text: str) -> None:
        """Pass on what it says about programs; its remarks on users and sockets are no news here."""
        if match := USAGE_ERROR.search(text):
            self.refused.append(match[1])
        if " CRIT " not in text:
            self.say("runner", text.partition(" WARN ")[2] or text)


class Runner:
    """supervisord and the conversation with it."""

    def __init__(self, programs: Sequence[str], env: Mapping[str, str], directory: Path) -> None:
        self.programs = list(programs)
        self._env = {**os.environ, **env, "LOGS": str(directory)}
        self.logs = LogPrinter(directory, [name for stage in STAGES for name in stage] + ["runner"])
        self._rpc_path = f"unix://{directory}/rpc"
        self._supervisord: subprocess.Popen[bytes] | None = None
        self.signals = 0

    def start(self) -> None:
        self.logs.start()
        self._supervisord = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(HERE / "supervisord.conf")],
            env=self._env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            # A session of its own: Ctrl-C reaches this script alone, which then stops the rest in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._until_answering()
        for name in self.programs:
            self._call("startProcess", name, False)

    def _until_answering(self) -> None:
        for _ in range(200):
            if self._supervisord is None or self._supervisord.poll() is not None:
                self.logs.drain()
                fail("supervisord did not start; its lines above say why")
            with contextlib.suppress(OSError, xmlrpc.client.Error):
                self._call("getState")
                return
            time.sleep(0.05)
        fail("supervisord does not answer")

    def _call(self, method: str, *args: object) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=SupervisorTransport(None, None, self._rpc_path))
        return getattr(proxy.supervisor, method)(*args)

    def states(self) -> dict[str, tuple[str, int]]:
        """(state, exit status) of every started program."""
        found = self._call("getAllProcessInfo")
        return {p["name"]: (p["statename"], p["exitstatus"]) for p in found if p["name"] in self.programs}

    def refused(self) -> str:
        """The program that ended with a usage error, if any: trying again cannot help."""
        with contextlib.suppress(OSError, xmlrpc.client.Error):
            # supervisord forgets the status of what ended within a second of its start, but writes it down.
            ended = [name for name, state in self.states().items() if state == ("EXITED", 2)]
            return (ended or self.logs.refused or [""])[0]
        return ""

    def stop(self) -> None:
        """Stop stage by stage; whatever still runs after :data:`KILL_AFTER_S` is killed."""
        started = time.monotonic()
        with contextlib.suppress(OSError, xmlrpc.client.Error):
            for stage, wait_s in zip(STAGES, STAGE_WAIT_S, strict=True):
                for name in stage:
                    self._tell("stopProcess", name, False)
                self._wait_stopped(stage, started + wait_s)
            self._wait_stopped(self.programs, started + KILL_AFTER_S)
            for name, (state, _) in self.states().items():
                if state not in STOPPED_STATES:
                    self.logs.say("runner", f"{name} did not end in time: killed")
                    self._tell("signalProcess", name, "KILL")
            self._wait_stopped(self.programs, time.monotonic() + 0.3)
        self._end_supervisord()
        self.logs.drain()

    def _tell(self, method: str, name: str, *args: object) -> None:
        """Call for one program; that it is not started, or has just ended, is no error."""
        with contextlib.suppress(xmlrpc.client.Fault):
            self._call(method, name, *args)

    def _wait_stopped(self, names: Sequence[str], until: float) -> None:
        while time.monotonic() < until and self.signals < 2:
            states = self.states()
            if all(states[name][0] in STOPPED_STATES for name in names if name in states):
                return
            time.sleep(0.05)

    def _end_supervisord(self) -> None:
        if self._supervisord is None:
            return
        # Its programs have ended; its own orderly end would only wait for its next look at them, up to a second.
        # If they have not (it did not answer), SIGTERM makes it stop them.
        with contextlib.suppress(OSError, xmlrpc.client.Error):
            if all(state in STOPPED_STATES for state, _ in self.states().values()):
                self._supervisord.kill()
        self._supervisord.terminate()
        try:
            self._supervisord.wait(2)
        except subprocess.TimeoutExpired:
            self._supervisord.kill()
            self._supervisord.wait()


def _die_with_parent() -> None:
    """If this script is killed outright, supervisord gets SIGTERM and stops the programs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def answers(url: str) -> bool:
    """True if a GET of ``url`` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def has_command(program: str, command: str) -> bool:
    """True if ``program`` knows the sub-command."""
    tried = subprocess.run([program, command, "--help"], capture_output=True, check=False)
    return tried.returncode == 0


def serve(data: Path, csv: Path | None, bin_directory: Path) -> int:
    """Run until a signal or until a program refuses its configuration; the exit code."""
    chosen = ports(os.environ)
    if csv is not None and not csv.is_file():
        fail(f"CSV={csv}: no such file")
    lock = Lock(data)
    lock.take()
    refuse_taken_ports(chosen)
    programs = ["store", "broker", "collector-1", "collector-2", "api"]
    if has_command(str(bin_directory / "telemetry-clickhouse"), "rollup"):
        programs.insert(1, "rollup")
    if csv is not None:
        programs.append("streamer")
    env = {
        **chosen,
        "BIN": str(bin_directory),
        "DATA": str(data),
        "CSV": str(csv or ""),
        "LOG_FORMAT": os.environ.get("LOG_FORMAT", "text"),
        "ZMQBROKER_URL": f"tcp://127.0.0.1:{chosen['PORT_BROKER']}",
        "ZMQBROKER_ADMIN_URL": f"tcp://127.0.0.1:{chosen['PORT_ADMIN']}",
        "CLICKHOUSE_URL": f"http://127.0.0.1:{chosen['PORT_STORE']}",
    }
    # A short path: a socket's may have no more than 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="telemetry-run-"))
    try:
        return supervise(Runner(programs, env, directory), f"http://127.0.0.1:{chosen['PORT_API']}", data)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def supervise(runner: Runner, api: str, data: Path) -> int:
    """Start, tell when the API is ready, wait for the end, stop."""
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        runner.signals += 1
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    ready = False
    try:
        runner.start()
        runner.logs.say("runner", f"starting {', '.join(runner.programs)}; data in {data}; Ctrl-C ends everything")
        while not asked.wait(0.5):
            if name := runner.refused():
                runner.logs.drain()
                runner.logs.say("runner", f"{name} cannot run like this (its last line says why): ending everything")
                return 2
            if not ready and answers(f"{api}/readyz"):
                ready = True
                runner.logs.say("runner", f"ready: dashboard {api}/  API {api}/api/v1/gpus  documents {api}/swagger/")
        runner.logs.say("runner", "stopping; a second Ctrl-C does not wait")
        return 0
    finally:
        runner.stop()
        runner.logs.say("runner", "everything has ended")


def stop(data: Path) -> int:
    """End the runner that holds ``data`` and wait for it."""
    lock = Lock(data)
    holder = lock.holder()
    if holder is None:
        print(f"run: nothing runs on {data}")
        return 0
    os.kill(holder, signal.SIGTERM)
    until = time.monotonic() + 15
    while lock.holder() == holder:
        if time.monotonic() > until:
            fail(f"process {holder} has not ended within 15 s")
        time.sleep(0.1)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="run", description=__doc__, allow_abbrev=False)
    parser.add_argument("command", choices=("run", "services", "stop"))
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="directory of everything that is kept")
    parser.add_argument("--csv", type=Path, default=SAMPLE, help="file that the streamer plays")
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="directory of the commands")
    args = parser.parse_args()
    data = args.data.resolve()
    if args.command == "stop":
        return stop(data)
    return serve(data, args.csv.resolve() if args.command == "run" else None, args.bin.absolute())


if __name__ == "__main__":
    sys.exit(main())
