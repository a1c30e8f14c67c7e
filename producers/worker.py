"""A worker process: takes lanes from its supervisor, one after the other, and plays them to the broker.

It ignores SIGINT and SIGTERM: these reach the supervisor, which says over the pipe when to stop. A pipe that closes
means that the supervisor is gone; the worker then drains and ends too.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

from producers.errors import SourceError
from producers.publisher import load_producer
from producers.run import Run
from producers.task import Failure, FleetTask, Task, WorkerSettings
from telemetry import logs, tracing
from zmqbroker.errors import BrokerError

REPORT_EVERY_S: Final = 0.2

READY: Final = "ready"
STOP: Final = "stop"
EXIT: Final = "exit"


def main(connection: Connection, settings: WorkerSettings, number: int) -> None:
    """Entry of a worker process."""
    for number_of_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number_of_signal, signal.SIG_IGN)
    logs.configure("telemetry-streamer", settings.log_level, settings.log_format)
    tracing.start("telemetry-streamer")
    try:
        Worker(connection, settings, number).run()
    finally:
        tracing.stop()


def runner_of(task: Task) -> Callable[..., Run]:
    """What plays a task; imported when needed, so that a simulator does not load what reads files."""
    if isinstance(task, FleetTask):
        from producers.fleet_run import FleetRun

        return FleetRun
    if task.following is not None:
        from producers.follow import FollowRun

        return FollowRun
    from producers.lane import LaneRun

    return LaneRun


class Worker:
    """The loop of a worker process; messages are READY, reports and failures out, lanes, STOP and EXIT in."""

    def __init__(self, connection: Connection, settings: WorkerSettings, number: int) -> None:
        self._connection = connection
        self._settings = settings
        self._number = number
        self._stopping = threading.Event()
        self._lanes: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._reported_at = 0.0
        self._log = logging.getLogger("producers.worker")
        self._sending = threading.Lock()

    def run(self) -> None:
        """Play lanes until told to exit."""
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()
        self._send(READY)
        while (task := self._lanes.get()) is not None:
            try:
                self._play(task)
            except (SourceError, BrokerError) as e:
                self._send(Failure(str(e)))
            except OSError as e:
                self._send(Failure(f"{task.title}: cannot be read on: {e.strerror or e}"))
            except MemoryError:
                self._send(Failure("out of memory: use fewer --batch-rows or --workers"))

    def _play(self, task: Task) -> None:
        settings = self._settings
        name = f"streamer-{self._number}-lane-{task.lane}"
        producer = load_producer(settings.producer)(
            settings.url,
            settings.topic,
            session=task.session,
            first_seq=task.start.seq,
            name=name,
            keys=settings.keys,
        )
        run = runner_of(task)(task, settings, producer, stopping=self._stopping, report=self._report)
        try:
            finished = run.run()
            # Reading has ended; what is out is waited for: as long as it takes while nobody asks to stop.
            deadline: float | None = None

            def enough() -> bool:
                nonlocal deadline
                self._report(run)
                if deadline is None and self._stopping.is_set():
                    deadline = time.monotonic() + settings.drain_timeout_s
                return deadline is not None and time.monotonic() >= deadline

            unacked = run.publisher.drain(enough)
            self._send(run.state(ended=True, done=finished and not unacked, unacked=unacked))
        finally:
            run.close()
            producer.close(0 if run.publisher.in_flight else 1)
        self._send(READY)

    def _report(self, run: Run) -> None:
        now = time.monotonic()
        if run.urgent or now - self._reported_at >= REPORT_EVERY_S:
            run.urgent = False
            self._reported_at = now
            self._send(run.state())

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            self._stopping.set()

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                message = EXIT
                self._stopping.set()
            if message == STOP:
                self._stopping.set()
            elif message == EXIT:
                self._lanes.put(None)
                return
            else:
                self._lanes.put(message)
