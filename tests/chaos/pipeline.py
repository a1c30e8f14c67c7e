"""The processes of a pipeline on one machine: each can be killed, stopped, continued and started again, on the same
data and at the same addresses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clickhouse.client import StoreAddress, StorePool
from tests.chaos import journal
from tests.chaos.audit import Address, dead_batches, kept_letters
from tests.chaos.disk import SmallDisk
from tests.helpers.processes import ROOT, free_port, get_json
from tests.helpers.waiting import eventually

TOPIC = "gpu-telemetry"


class Program:
    """One process that comes back as often as it is started. Its log goes on in one file."""

    def __init__(self, name: str, module: str, args: Sequence[str], logs: Path) -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, *args]
        self.log_path = logs / f"{name}.log"
        self.popen: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self._log_at = 0

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            log.write(f"--- start of {self.name}\n".encode())
            log.flush()
            self._log_at = log.tell()
            self.popen = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, "LOG_FORMAT": "text", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.stopped = False

    @property
    def said_anything(self) -> bool:
        """Has it logged since its last start? Before that Python still reads modules, and a signal just ends it."""
        return self.log_path.stat().st_size > self._log_at

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def signal(self, number: int) -> None:
        if self.running:
            assert self.popen is not None
            self.popen.send_signal(number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)
        self.stopped = False

    def kill(self) -> None:
        if self.popen is not None:
            try:
                os.killpg(self.popen.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.popen.wait()

    def terminate(self, timeout: float = 15.0) -> int:
        """A stop in good order; returns the exit code."""
        if self.popen is None:
            return 0
        self.go_on()
        self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not end within {timeout} s of SIGTERM; its log: {self.log_path}"
            ) from None

    def tail(self, lines: int = 15) -> str:
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-lines:])


class Pipeline:
    """Store, broker, collectors and feeder below ``directory``; as a context manager it ends them all.

    ``brokerless``: collectors listen, and the feeder goes to whichever answers; :attr:`broker` is never started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rows: int,
        collectors: int = 2,
        rate: float = 100_000,
        endless: bool = False,
        small_disks: bool = False,
        brokerless: bool = False,
        broker_options: Sequence[str] = (),
        collector_options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True)
        self.journal = directory / "feeder.journal"
        self.enough = directory / "enough"
        """Where ``endless``: the feeder goes on until this file exists."""
        self.disks: dict[str, SmallDisk] = {}
        if small_disks:
            sizes = {"broker": 512, "store": 1024} if not brokerless else {"store": 1024}
            wanted = (os.environ.get("FILL") or "broker,store").split(",")
            made = {name: SmallDisk(directory / name, sizes[name]) for name in wanted if name in sizes}
            self.disks = {name: disk for name, disk in made.items() if disk.mounted}
        store_port, broker_port, admin_port, self._http_port = (free_port() for _ in range(4))
        admin_url = f"tcp://127.0.0.1:{admin_port}"
        self.store_url = f"http://127.0.0.1:{store_port}"
        self.broker_url = f"tcp://127.0.0.1:{broker_port}"
        self.store = self._program(
            "store", "clickhouse.cli", "serve", "--migrate", "--data-dir", f"{directory}/store/data",
            "--http", f"127.0.0.1:{store_port}",
        )  # fmt: skip
        self.broker = self._program(
            "broker", "zmqbroker.cli", "serve", "--data-dir", f"{directory}/broker/data", "--bind", self.broker_url,
            "--admin-bind", admin_url, "--http", f"127.0.0.1:{self._http_port}", *broker_options,
        )  # fmt: skip
        self.brokerless = brokerless
        names = [f"collector-{n}" for n in range(1, collectors + 1)]
        self._dead_letters = [directory / f"{name}-dead" for name in names]
        listen = [f"tcp://127.0.0.1:{free_port()}" for _ in names]
        told = ("--clickhouse", self.store_url, "--http", "127.0.0.1:0", *collector_options)
        self.collectors = [
            self._program(name, "consumers.cli", "--bind", address, "--dead-letters", str(dead), *told)
            if brokerless
            else self._program(name, "consumers.cli", "--connect", self.broker_url, "--broker-admin", admin_url, *told)
            for name, address, dead in zip(names, listen, self._dead_letters, strict=True)
        ]
        self._rollup = ("rollup", "--url", self.store_url)
        self.rollup = self._program(
            "rollup", "clickhouse.cli", *self._rollup, "--http", "127.0.0.1:0", "--interval", "1s"
        )
        self.feeder = self._program(
            "feeder", "tests.chaos.feeder", "--connect", ",".join(listen) if brokerless else self.broker_url,
            "--journal", str(self.journal), "--rows", str(rows), "--rate", str(rate), *(("--until", str(self.enough)) if endless else ()),
        )  # fmt: skip

    def _program(self, name: str, module: str, *args: str) -> Program:
        return Program(name, module, args, self.logs)

    @property
    def programs(self) -> list[Program]:
        return [*self._servers, self.feeder]

    @property
    def _servers(self) -> list[Program]:
        """All but the feeder, who comes to an end."""
        return [self.store, *([] if self.brokerless else [self.broker]), *self.collectors, self.rollup]

    def start(self) -> None:
        """All at once: each waits for what it needs."""
        for program in self.programs:
            program.start()

    def feed(self, rows: int, timeout: float) -> None:
        """So many rows more, as fast as they are taken, by a feeder of their own; into the same journal."""
        told = journal.read(self.journal).acked_rows
        feeder = self._program(
            "feeder-2", "tests.chaos.feeder", "--connect", self.broker_url, "--journal", str(self.journal),
            "--rows", str(told + rows), "--rate", "1e9",
        )  # fmt: skip
        feeder.start()
        try:
            assert feeder.popen is not None
            assert feeder.popen.wait(timeout) == 0, feeder.tail()
        finally:
            feeder.kill()

    def broker_stats(self) -> dict:
        return get_json(f"http://127.0.0.1:{self._http_port}/stats")

    def lag_rows(self, group: str = "clickhouse") -> int:
        return self.broker_stats()["topics"][TOPIC]["groups"][group]["lag_rows"]

    def dead_batches(self, acked_garbage: int) -> list[Address]:
        """Addresses of the dead letters. Without a broker this ends the collectors, each of whom keeps letters of its
        own: a batch that moved to another before its ack may be in both."""
        if not self.brokerless:
            dead_expected = self.broker_stats()["topics"].get(TOPIC, {}).get("dead", acked_garbage)
            return dead_batches(self.broker_url, TOPIC, max(dead_expected, acked_garbage))
        for collector in self.collectors:
            collector.terminate()
        return sorted({address for directory in self._dead_letters for address in kept_letters(directory)})

    def roll_up(self) -> None:
        """One more look of a rollup of its own: whatever the other one left half done is made good."""
        command = [sys.executable, "-m", "clickhouse.cli", *self._rollup, "--once", "--http", "127.0.0.1:0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"rollup --once ended with {done.returncode}:\n{done.stderr[-2000:]}"

    def open_store(self) -> StorePool:
        return StorePool(StoreAddress(url=self.store_url))

    def wait_until_fed(self, timeout: float) -> None:
        """Until the feeder has come to its end; a feeder that died is started again."""
        deadline = time.monotonic() + timeout
        while self.feeder.popen is None or self.feeder.popen.poll() != 0:
            if not self.feeder.running:
                self.feeder.start()
            assert time.monotonic() < deadline, f"the feeder is not done after {timeout} s:\n{self.feeder.tail()}"
            time.sleep(0.1)

    def wait_until_drained(self, timeout: float) -> None:
        """Until the broker's group has settled everything; without a broker what is acknowledged is stored."""

        def drained() -> bool:
            for program in self._servers:
                assert program.running, f"{program.name} has ended by itself:\n{program.tail()}"
            if self.brokerless:
                return True
            group = self.broker_stats()["topics"][TOPIC]["groups"]["clickhouse"]
            return group["lag_rows"] == 0 and group["lag_messages"] == 0

        eventually(drained, timeout, "the group has settled every range", pause=0.2)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs:
            program.kill()
        for disk in self.disks.values():
            disk.remove()
