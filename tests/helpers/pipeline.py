"""The whole pipeline, started as a newcomer would: with make, on free ports and a data directory of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.helpers.processes import ROOT, free_port, get_json
from tests.helpers.waiting import eventually

PORTS = {
    "BROKER": 5555,
    "ADMIN": 5556,
    "BROKER_HTTP": 9090,
    "STREAMER": 8081,
    "COLLECTOR_1": 8082,
    "COLLECTOR_2": 8083,
    "ROLLUP": 8084,
    "STORE": 8123,
    "API": 8080,
}
"""The ports that the documents speak of."""
READY_TIMEOUT_S = 90.0
CTRL_C_TIMEOUT_S = 12.0
"""What a user is promised."""


class Pipeline:
    """``make run`` or ``make services``. As a context manager it ends everything, the hard way if need be."""

    def __init__(self, target: str, data: Path, csv: Path | None = None) -> None:
        self.ports = {f"PORT_{name}": str(free_port()) for name in PORTS}
        self.api = f"http://127.0.0.1:{self.ports['PORT_API']}"
        data.mkdir(parents=True, exist_ok=True)
        self.log = data.parent / f"make-{target}-{time.monotonic_ns()}.log"
        # Nothing of the caller's environment may point the pipeline at something else.
        own = ("BROKER_", "STREAMER_", "COLLECTOR_", "STORE_", "API_", "ZMQBROKER_", "CLICKHOUSE_", "LOG_", "MAKE")
        env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        with self.log.open("wb") as log:
            self.make = subprocess.Popen(
                ["make", target, f"DATA={data}", *([f"CSV={csv}"] if csv else [])],
                cwd=ROOT,
                env={**env, **self.ports},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def output(self) -> str:
        """Everything printed so far."""
        return self.log.read_text("utf-8", "replace")

    def wait_ready(self) -> None:
        """Until it says that the dashboard is there."""

        def ready() -> bool:
            assert self.make.poll() is None, self.output()[-3000:]
            return f"ready: dashboard {self.api}/" in self.output()

        try:
            eventually(ready, READY_TIMEOUT_S, "the pipeline is ready", 0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()[-4000:]}") from None

    def get(self, path: str) -> Any:
        """JSON of the API."""
        return get_json(f"{self.api}{path}", timeout=20)

    def here(self, text: str) -> str:
        """``text`` of a document with its default ports replaced by this pipeline's."""
        for name, default in PORTS.items():
            text = text.replace(f"127.0.0.1:{default}/", f"127.0.0.1:{self.ports[f'PORT_{name}']}/")
        return text

    def processes(self) -> list[psutil.Process]:
        """make, the runner, supervisord and every program that lives now."""
        try:
            root = psutil.Process(self.make.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ctrl_c(self) -> float:
        """What a terminal does to a foreground group; returns the seconds until all has ended."""
        living = self.processes()
        begun = time.monotonic()
        os.killpg(self.make.pid, signal.SIGINT)
        self.make.wait(CTRL_C_TIMEOUT_S + 10)
        seconds = time.monotonic() - begun
        left = [process for process in psutil.wait_procs(living, timeout=0.5)[1] if not _is_zombie(process)]
        assert not left, f"still there after Ctrl-C: {left}\n{self.output()[-3000:]}"
        return seconds

    def killed_at_the_end(self) -> list[str]:
        """Programs that did not drain in time."""
        return re.findall(r"(\S+) did not end in time: killed", self.output())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in reversed(self.processes()):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        if self.make.poll() is None:
            self.make.kill()
        self.make.wait()


def _is_zombie(process: psutil.Process) -> bool:
    """Ended, but nobody has asked how: whoever adopted it may never."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
