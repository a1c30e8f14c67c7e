"""What every kind of work has that a worker does: counters, pace, and how far it is."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from producers.following import Following
from producers.pacing import TokenBucket
from producers.publisher import Publisher
from producers.task import Position, Report, WorkerSettings


class Run(ABC):
    """One worker's run over one task.

    ``report`` is called between batches. :meth:`run` returns when there is no more to publish or it was stopped; what
    was published and is not durable yet is the caller's to drain, see :attr:`publisher`.
    """

    def __init__(
        self,
        lane: int,
        start: Position,
        settings: WorkerSettings,
        producer: Any,
        *,
        stopping: threading.Event,
        report: Callable[[Run], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.publisher: Publisher[Position] = Publisher(producer, start)
        self.rejected: dict[str, int] = {}
        self.lines = 0
        self.rows_read = 0
        self.bytes_read = 0
        self.passes = 0
        self.following: Following | None = None
        self.urgent = False
        """The next report must go out at once: what follows relies on it."""
        self._lane = lane
        self._settings = settings
        self._stopping = stopping
        self._report = report
        self._clock_ns = clock_ns
        self._bucket = TokenBucket(settings.rate) if settings.rate else None

    @abstractmethod
    def run(self) -> bool:
        """Publish; True if the task came to its end, False if it was stopped."""

    def close(self) -> None:  # noqa: B027
        """Let go of files."""

    def state(self, *, ended: bool = False, done: bool = False, unacked: int = 0) -> Report:
        """How far the run is."""
        publisher, stats = self.publisher, self.publisher.producer.stats
        return Report(
            lane=self._lane,
            position=publisher.floor,
            lines=self.lines,
            rows_read=self.rows_read,
            rows_published=publisher.rows_published,
            rows_acked=publisher.rows_acked,
            batches_published=publisher.batches_published,
            batches_acked=publisher.batches_acked,
            bytes_read=self.bytes_read,
            passes=self.passes,
            rejected=dict(self.rejected),
            pending=publisher.in_flight,
            pending_bytes=stats.pending_bytes,
            credit_wait_s=stats.credit_wait_seconds,
            reconnects=stats.reconnects,
            possible_duplicates=stats.possible_duplicates,
            connected=bool(stats.connected),
            latency_p50_s=publisher.latency_s(0.5),
            latency_p99_s=publisher.latency_s(0.99),
            following=self.following,
            ended=ended,
            done=done,
            unacked=unacked,
        )

    def _should_stop(self) -> bool:
        ends_ns = self._settings.ends_ns
        return self._stopping.is_set() or bool(ends_ns and self._clock_ns() >= ends_ns)

    def _wait_until(self, due_ns: int) -> bool:
        """Wait for a time of the wall clock; False if stopped meanwhile."""
        while (left_ns := due_ns - self._clock_ns()) > 0 and not self._should_stop():
            self._stopping.wait(min(left_ns / 1e9, 0.2))
            self.publisher.settle()
            self._report(self)
        return not self._should_stop()

    def _wait_for_tokens(self, rows: int) -> bool:
        """Wait until ``rows`` rows may go under ``--rate``; False if stopped meanwhile."""
        if self._bucket is None:
            return not self._should_stop()
        return self._wait_until(self._clock_ns() + int(self._bucket.delay_s(rows) * 1e9))
