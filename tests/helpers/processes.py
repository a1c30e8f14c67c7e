"""Real processes for tests: started with a console script's module, watched by their log, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.helpers.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    """A TCP port of loopback that nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def get_json(url: str, timeout: float = 5.0) -> Any:
    """The JSON body of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


class RunningProcess:
    """``python -m MODULE ARGS``: its log goes to a file, its JSON lines are read back with :meth:`lines`.

    As a context manager it kills the process group at the end.
    """

    def __init__(
        self, module: str, args: Sequence[str], directory: Path, *, name: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name or module.partition(".")[0]
        directory.mkdir(parents=True, exist_ok=True)
        self.log_path = directory / f"{self.name}.log"
        self._log = self.log_path.open("ab")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            env={**os.environ, "LOG_FORMAT": "json", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def lines(self) -> list[dict[str, Any]]:
        """Every JSON line logged so far."""
        lines = []
        for line in self.log_path.read_text("utf-8", "replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def wait_for_line(self, msg: str, timeout: float = 20.0) -> dict[str, Any]:
        """The first log line with that ``msg``; fails at once if the process ends before."""

        def find() -> dict[str, Any] | None:
            found = [line for line in self.lines() if line.get("msg") == msg]
            if not found and self.popen.poll() is not None:
                pytest_fail(f"{self.name} ended with {self.popen.returncode}:\n{self.log_path.read_text()[-2000:]}")
            return found[0] if found else None

        line = eventually(find, timeout, f"{self.name} logs {msg!r}")
        assert line is not None
        return line

    def http(self, timeout: float = 20.0) -> str:
        """``http://HOST:PORT`` of the process's own HTTP server."""
        return f"http://{self.wait_for_line('listening', timeout)['address']}"

    def wait_ready(self, timeout: float = 30.0) -> str:
        """Wait until /readyz answers 200; returns the base URL."""
        base = self.http(timeout)
        eventually(lambda: get_json(f"{base}/readyz").get("status") == "ready", timeout, f"{self.name} is ready")
        return base

    def stop(self, number: int = signal.SIGTERM, timeout: float = 12.0) -> int:
        """Send a signal, wait, return the exit code; ``subprocess.TimeoutExpired`` if it does not end."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout)

    def kill(self) -> None:
        """End the whole process group at once."""
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if os.environ.get("COVERAGE_PROCESS_CONFIG") and self.popen.poll() is None:
            # Killed at once it would take with it which lines it reached.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        self.kill()
        self._log.close()


def pytest_fail(message: str) -> None:
    """Fail the test outside of any retry (``pytest.fail`` is no AssertionError)."""
    import pytest

    pytest.fail(message)
