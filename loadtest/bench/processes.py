"""Processes of a benchmark: the product's own commands, and functions that run in a process of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import psutil

# Not fork: a child must not inherit sockets, threads or a half-used ZeroMQ context.
SPAWN: Final = multiprocessing.get_context("spawn")
START_TIMEOUT_S: Final = 60.0


def free_port() -> int:
    """A TCP port of loopback that nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Program:
    """One of our commands as a process; its log goes to a file, its CPU time is kept after it ends."""

    def __init__(self, name: str, module: str, args: Sequence[str], directory: Path, http_port: int = 0) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._http_port = http_port
        self._cpu_at_end: float | None = None
        http = ["--http", f"127.0.0.1:{http_port}"] if http_port else []
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *args, *http],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LOG_LEVEL": "warning", "LOG_FORMAT": "json"},
                start_new_session=True,
            )
        self.process = psutil.Process(self.popen.pid)

    def wait_ready(self) -> None:
        """Until ``/readyz`` (or ``/ping``) answers 200."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            if self._reaped():
                break
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not get ready: {self.log.read_text()[-1000:]}")

    def cpu_seconds(self) -> float:
        """CPU of the process and its children so far; after its end, in all."""
        if self._cpu_at_end is not None:
            return self._cpu_at_end
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (self.process, *self.process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
        return total

    def finish(self, timeout: float) -> None:
        """Wait for the process's own end; ``RuntimeError`` if it fails or takes longer."""
        until = time.monotonic() + timeout
        while not self._reaped():
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name} did not end within {timeout} s")
            time.sleep(0.02)
        if self.popen.returncode:
            raise RuntimeError(f"{self.name} ended with {self.popen.returncode}: {self.log.read_text()[-1000:]}")

    def end(self) -> None:
        """SIGTERM, then SIGKILL after 15 s."""
        if not self._reaped():
            self.popen.terminate()
            until = time.monotonic() + 15
            while not self._reaped() and time.monotonic() < until:
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def _reaped(self) -> bool:
        """True once it has ended. wait4, because it alone tells the CPU of a process that is gone."""
        if self.popen.returncode is not None:
            return True
        pid, status, usage = os.wait4(self.popen.pid, os.WNOHANG)
        if pid:
            self.popen.returncode = os.waitstatus_to_exitcode(status)
            self._cpu_at_end = usage.ru_utime + usage.ru_stime
        return bool(pid)


@contextlib.contextmanager
def programs() -> Iterator[list[Program]]:
    """A list whose programs are ended at the end, the last one first."""
    started: list[Program] = []
    try:
        yield started
    finally:
        for program in reversed(started):
            program.end()


def start_broker(started: list[Program], directory: Path, *options: str) -> tuple[Program, str]:
    """A fresh broker on free ports with its data in ``directory / "broker"``, not waited for, and its address.

    ``started`` is what :func:`programs` ends.
    """
    url = f"tcp://127.0.0.1:{free_port()}"
    arguments = ["serve", "--data-dir", str(directory / "broker"), "--bind", url]
    arguments += ["--admin-bind", f"tcp://127.0.0.1:{free_port()}", *options]
    broker = Program("broker", "zmqbroker.cli", arguments, directory, free_port())
    started.append(broker)
    return broker, url


class Role:
    """A function in a process of its own that says "ready", waits for "go" and returns a result."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._mine, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_play, args=(theirs, work, args), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self, timeout: float = START_TIMEOUT_S) -> None:
        """Until the function has reached its ``go()``."""
        self._expect(timeout, "ready")

    def go(self) -> None:
        self._mine.send("go")

    def result(self, timeout: float) -> Any:
        """What the function returned."""
        value = self._expect(timeout, "result")
        self._process.join(10)
        return value

    def end(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _expect(self, timeout: float, kind: str) -> Any:
        if not self._mine.poll(timeout):
            raise RuntimeError(f"{self._process.name} gave no {kind} within {timeout} s")
        got, value = self._mine.recv()
        if got != kind:
            raise RuntimeError(f"{self._process.name}: {value}")
        return value


def _play(pipe: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    def go() -> None:
        pipe.send(("ready", None))
        pipe.recv()

    try:
        pipe.send(("result", work(go, *args)))
    except BaseException as error:
        pipe.send(("error", repr(error)))
        raise
