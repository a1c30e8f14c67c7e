"""The supervisor: starts worker processes, hands out lanes, merges progress, restarts what dies.

A lane whose worker died goes back into the queue at the last position known to be durable, in its old session: what
had been sent beyond it is sent again under its old address, and the broker knows it. Any worker may take it, so one
that does not come back leaves its share to the others.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import connection as mp_connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from producers.task import Failure, Report, Task, WorkerSettings
from producers.worker import EXIT, READY, STOP
from producers.worker import main as worker_main
from telemetry.backoff import Backoff

DEATHS_WITHOUT_PROGRESS_MAX: Final = 10
"""After so many workers died on one lane without a batch between, the lane itself is at fault."""


@dataclass(slots=True)
class Totals:
    """What all workers did together; also the JSON of ``/api/v1/status``."""

    lines: int = 0
    rows_read: int = 0
    rows_published: int = 0
    rows_acked: int = 0
    batches_published: int = 0
    batches_acked: int = 0
    bytes_read: int = 0
    passes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    pending_batches: int = 0
    pending_bytes: int = 0
    credit_wait_seconds: float = 0.0
    reconnects: int = 0
    possible_duplicates: int = 0
    unacked_batches: int = 0
    workers_alive: int = 0
    workers_connected: int = 0
    worker_restarts: int = 0
    lanes: int = 0
    lanes_done: int = 0
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    spooled_rows: int = 0
    spooled_bytes: int = 0
    rows_dropped: int = 0
    """Rows that a live source lost: neither the broker nor a full spool took them."""
    targets: int = 0
    targets_up: int = 0

    @property
    def rows_rejected(self) -> int:
        return sum(self.rejected.values())


@dataclass(slots=True)
class _Member:
    number: int
    process: BaseProcess
    connection: Connection
    task: Task | None = None
    report: Report | None = None
    ready: bool = False


class Supervisor:
    """Runs lanes on ``workers`` processes. Single-threaded: call :meth:`run` from one thread; ``totals`` may be read
    from any.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        workers: int,
        lanes: Iterable[Task],
        *,
        log: logging.Logger,
        on_report: Callable[[Task, Report], None] = lambda task, report: None,
        duration_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._lanes: Iterator[Task] = iter(lanes)
        self._returned: deque[Task] = deque()
        self._log = log
        self._on_report = on_report
        # Counted from the first lane handed out: starting processes is not part of the time asked for.
        self._duration_s = duration_s
        self._began: float | None = None
        self._clock = clock
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[int, _Member] = {}
        self._restart_at: dict[int, float] = {}
        self._backoff = {number: Backoff(0.1, 5.0) for number in range(workers)}
        self._deaths: dict[int, int] = {}
        self._settled: list[Report] = []
        self._finished = Totals()
        self._stop_sent = False
        self._exhausted = False
        self.failure: str | None = None
        self.totals = Totals()

    def run(self, stopping: Callable[[], bool]) -> Totals:
        """Run until all lanes are done, or ``stopping()`` and everything is drained. See ``failure`` afterwards."""
        try:
            for number in range(self._workers):
                self._start(number)
            while not self._over():
                if stopping() or self.failure is not None or self._time_is_up():
                    self._send_stop()
                self._wait(0.2)
                self._restart_due()
                self._hand_out()
                self._merge()
            self._merge()
            return self.totals
        finally:
            self._end()
            self._merge()

    def _time_is_up(self) -> bool:
        return bool(self._duration_s and self._began is not None and self._clock() - self._began >= self._duration_s)

    # What changes the members.

    def _start(self, number: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(theirs, self._settings, number), name=f"streamer-worker-{number}", daemon=True
        )
        process.start()
        theirs.close()
        self._members[number] = _Member(number, process, ours)

    def _wait(self, timeout: float) -> None:
        by_handle: dict[object, _Member] = {}
        for member in self._members.values():
            by_handle[member.connection] = member
            by_handle[member.process.sentinel] = member
        if not by_handle:
            time.sleep(min(timeout, 0.05))
            return
        dead = []
        for handle in mp_connection.wait(list(by_handle), timeout):  # type: ignore[arg-type]
            member = by_handle[handle]
            self._receive(member)
            if handle == member.process.sentinel:
                dead.append(member)
        for member in dead:
            self._buried(member)

    def _receive(self, member: _Member) -> None:
        try:
            while member.connection.poll():
                message = member.connection.recv()
                if message == READY:
                    member.ready = True
                elif isinstance(message, Failure):
                    self.failure = self.failure or message.message
                    member.ready = True
                    self._settle(member)
                else:
                    self._reported(member, message)
        except (EOFError, OSError):
            return

    def _reported(self, member: _Member, report: Report) -> None:
        task = member.task
        if task is None:
            return
        if report.position.seq > (member.report or report).position.seq or report.passes:
            self._deaths.pop(task.lane, None)
            self._backoff[member.number].reset()
        member.report = report
        self._on_report(task, report)
        if report.ended:
            self._finished.lanes_done += report.done
            self._finished.unacked_batches += report.unacked
            self._settle(member)

    def _settle(self, member: _Member) -> None:
        """The member is done with its lane: its numbers stay."""
        if member.report is not None:
            _add(self._finished, member.report)
        member.task = member.report = None

    def _buried(self, member: _Member) -> None:
        member.process.join()
        member.connection.close()
        del self._members[member.number]
        task, report = member.task, member.report
        self._settle(member)
        if self._stop_sent:
            if task is not None:
                self._finished.unacked_batches += max(1, report.pending if report else 1)
            return
        delay = self._backoff[member.number].next_s()
        self._log.warning(
            "a worker ended and is started again",
            extra={"worker": member.number, "exit_code": member.process.exitcode, "again_in_s": round(delay, 2)},
        )
        self._finished.worker_restarts += 1
        self._restart_at[member.number] = self._clock() + delay
        if task is None:
            return
        deaths = self._deaths[task.lane] = self._deaths.get(task.lane, 0) + 1
        if deaths >= DEATHS_WITHOUT_PROGRESS_MAX:
            self.failure = f"{task.title}: {deaths} workers died on the same part of it without getting on"
            return
        again = task.again(report)
        if again is None:
            self.failure = f"{task.title}: its worker died, and it cannot be read again"
        else:
            self._returned.append(again)

    def _restart_due(self) -> None:
        if self._stop_sent:
            self._restart_at.clear()
        for number, at in list(self._restart_at.items()):
            if self._clock() >= at:
                del self._restart_at[number]
                self._start(number)

    def _hand_out(self) -> None:
        if self._stop_sent:
            return
        for member in self._members.values():
            if not member.ready or member.task is not None:
                continue
            task = self._returned.popleft() if self._returned else self._next_lane()
            if task is None:
                return
            try:
                member.connection.send(task)
            except OSError:
                self._returned.appendleft(task)
                continue
            member.task = task
            member.ready = False
            if self._began is None:
                self._began = self._clock()

    def _next_lane(self) -> Task | None:
        task = next(self._lanes, None)
        if task is None:
            self._exhausted = True
        else:
            self._finished.lanes += 1
        return task

    def _over(self) -> bool:
        busy = any(member.task is not None for member in self._members.values())
        if self._stop_sent:
            return not busy
        return self._exhausted and not busy and not self._returned

    def _send_stop(self) -> None:
        if self._stop_sent:
            return
        self._stop_sent = True
        # Lanes nobody holds were not read to their end, and nothing of them is waited for.
        self._returned.clear()
        for member in self._members.values():
            _try_send(member.connection, STOP)

    def _end(self) -> None:
        for member in self._members.values():
            _try_send(member.connection, STOP)
            _try_send(member.connection, EXIT)
        give_up = self._clock() + 3.0
        for member in self._members.values():
            member.process.join(max(0.0, give_up - self._clock()))
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.connection.close()
        self._members.clear()

    def _merge(self) -> None:
        totals = replace(self._finished, rejected=dict(self._finished.rejected))
        for member in self._members.values():
            totals.workers_alive += member.process.is_alive()
            if member.report is not None:
                _add(totals, member.report)
                totals.pending_batches += member.report.pending
                totals.pending_bytes += member.report.pending_bytes
                totals.workers_connected += member.report.connected
                totals.latency_p50_s = max(totals.latency_p50_s, member.report.latency_p50_s)
                totals.latency_p99_s = max(totals.latency_p99_s, member.report.latency_p99_s)
        # Each lane has its own passes: a file's pass is over when all of its lanes are.
        totals.passes //= max(1, totals.lanes)
        self.totals = totals


def _add(totals: Totals, report: Report) -> None:
    totals.lines += report.lines
    totals.rows_read += report.rows_read
    totals.rows_published += report.rows_published
    totals.rows_acked += report.rows_acked
    totals.batches_published += report.batches_published
    totals.batches_acked += report.batches_acked
    totals.bytes_read += report.bytes_read
    totals.passes += report.passes
    totals.credit_wait_seconds += report.credit_wait_s
    totals.reconnects += report.reconnects
    totals.possible_duplicates += report.possible_duplicates
    for reason, rows in report.rejected.items():
        totals.rejected[reason] = totals.rejected.get(reason, 0) + rows


def _try_send(connection: Connection, message: object) -> None:
    try:
        connection.send(message)
    except OSError:
        pass
