"""Live sources to the broker: small batches at once, the spool while nobody takes them, what was spooled afterwards.

Nothing is waited for: a source that measures every second must measure, whatever the broker does. A row is at risk
(lost if this process is killed) while it waits for others of its batch and for the broker's answer. Where that takes
longer than :data:`AT_RISK_S` the batch goes to the spool too, under its address, so that the broker tells a repeat.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from producers.batcher import Batcher
from producers.catchup import CatchUp
from producers.columns import Columns
from producers.publisher import log_batch
from producers.spool import Spool
from producers.supervisor import Totals
from telemetry import tracing
from zmqbroker.errors import BrokerError, PublishTimeout

AT_RISK_S: Final = 1.0
"""A row is durable, here or at the broker, so long after it was measured (or after --linger, where that is longer)."""
TURN_S: Final = 0.25
"""Longest wait between two calls of :meth:`LiveSender.pump`."""
LINGER_S_MAX: Final = 0.5
"""Longest time that rows wait for others while acks are slow."""


class _Sent(NamedTuple):
    receipt: Any
    rows: int
    measured_at: float
    """When the first of its rows came in."""
    at: float
    session: int
    seq: int
    payload: bytes


class LiveSender:
    """Sends what a live source measures. Used from one thread.

    ``make_producer(session, first_seq)`` makes a producer (session None: a new one). Batches unacknowledged for
    ``spool_after_s`` mean that nobody takes them: from then on rows go to the spool until that has passed.
    ``catch_up_share``: of the broker's time, for what was spooled.
    """

    def __init__(
        self,
        make_producer: Callable[[int | None, int], Any],
        batcher: Batcher,
        *,
        batch_rows: int,
        linger_s: float,
        log: logging.Logger,
        spool: Spool | None = None,
        spool_after_s: float = 3.0,
        catch_up_share: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.totals = Totals(lanes=1, workers_alive=1)
        self._make_producer = make_producer
        self._producer = make_producer(None, 1)
        self._batcher = batcher
        self._batch_rows = batch_rows
        self._linger_s = linger_s
        self._log = log
        self._spool = spool
        self._spool_after_s = spool_after_s
        self._clock = clock
        self._buffer: list[Columns] = []
        self._buffered_rows = 0
        self._buffered_at = 0.0
        self._sent: deque[_Sent] = deque()
        self._latencies: deque[float] = deque(maxlen=256)
        self._stalled = False
        self._saved = 0
        """How many of ``_sent`` are in the spool too, from the oldest on."""
        self._catch_up = spool and CatchUp(
            spool, make_producer, share=catch_up_share, totals=self.totals, refused=self._refused, clock=clock
        )
        self.dropped_rows = 0
        """Rows that neither broker nor spool could take."""

    @property
    def stalled(self) -> bool:
        """Whether rows go to the spool at the moment."""
        return self._stalled

    def add(self, columns: Columns) -> None:
        """Take rows, which must have times. They go out when there are enough, or after ``linger_s``."""
        if not columns.rows:
            return
        if not self._buffer:
            self._buffered_at = self._clock()
        self._buffer.append(columns)
        self._buffered_rows += columns.rows
        self.totals.rows_read += columns.rows
        if self._buffered_rows >= self._batch_rows:
            self._flush()

    def pump(self) -> None:
        """Send what is due, notice what has become durable, catch up. Call it every :data:`TURN_S` at least."""
        if self._buffer and self._clock() - self._buffered_at >= self._linger_now_s():
            self._flush()
        self._settle()
        self._watch()
        self._save_sent(measured_before=self._clock() - AT_RISK_S + TURN_S)
        if self._catch_up is not None and not self._stalled:
            self._catch_up.pump(self._producer.session, [batch.seq for batch in self._sent])
        self._count()

    def close(self, timeout_s: float) -> int:
        """Wait for acks, at most ``timeout_s``; put what remains into the spool. Batches that are nowhere durable."""
        self._flush()
        until = self._clock() + timeout_s
        while self._sent and self._clock() < until and not self._stalled:
            try:
                self._sent[0].receipt.wait(0.05)
            except BrokerError:
                break
            self._settle()
            self._watch()
        left = len(self._sent)
        if self._spool is not None:
            self._save_sent()
            left = 0
        self._producer.close(0)
        if self._catch_up is not None:
            self._catch_up.close()
        if self._spool is not None:
            self._spool.close()
        self._count()
        self.totals.unacked_batches = left
        return left

    def _flush(self) -> None:
        while self._buffer:
            columns = _joined(self._buffer)
            rest = columns.part(self._batch_rows, columns.rows) if columns.rows > self._batch_rows else None
            self._buffer = [rest] if rest is not None else []
            self._buffered_rows = rest.rows if rest is not None else 0
            self._send(columns.part(0, self._batch_rows))

    def _send(self, columns: Columns) -> None:
        assert columns.timestamp_ns is not None
        pack = partial(self._batcher.pack, columns, columns.timestamp_ns)
        if self._stalled:
            self._to_spool(pack, columns.rows)
            return
        kept: list[tuple[int, int, bytes]] = []

        def packed(session: int, seq: int) -> bytes:
            kept.append((session, seq, pack(session, seq)))
            return kept[-1][2]

        try:
            receipt = self._producer.publish(packed, columns.rows, timeout=0)
        except PublishTimeout:
            self._stall("the broker takes no more")
            self._to_spool(pack, columns.rows)
            return
        except BrokerError as e:
            self._renew_producer(e)
            self._to_spool(pack, columns.rows)
            return
        session, seq, payload = kept[-1]
        self._sent.append(_Sent(receipt, columns.rows, self._buffered_at, self._clock(), session, seq, payload))
        self.totals.rows_published += columns.rows
        self.totals.batches_published += 1
        if self._log.isEnabledFor(logging.DEBUG):
            log_batch(self._log, "batch published", receipt, columns.rows)

    def _to_spool(self, pack: Callable[[int, int], bytes], rows: int) -> None:
        if self._spool is None:
            self.dropped_rows += rows
            return
        try:
            self._spool.append_new(pack, rows)
        except (BrokerError, OSError) as e:
            self.dropped_rows += rows
            self._log.error("the spool cannot be written", extra={"rows_lost": rows, "reason": str(e)})

    def _settle(self) -> None:
        sent = self._sent
        while sent and sent[0].receipt.done:
            batch = sent.popleft()
            self._saved = max(0, self._saved - 1)
            if batch.receipt.error is not None:
                self._refused(batch.rows, batch.receipt.error)
                continue
            self.totals.rows_acked += batch.rows
            self.totals.batches_acked += 1
            if self._log.isEnabledFor(logging.DEBUG):
                log_batch(self._log, "batch acknowledged", batch.receipt, batch.rows)
            tracing.published(batch.receipt)
            self._latencies.append(self._clock() - batch.at)

    def _refused(self, rows: int, error: BrokerError) -> None:
        """The broker will never take this batch."""
        self.dropped_rows += rows
        self._log.error("the broker refused a batch for good", extra={"rows_lost": rows, "reason": str(error)})

    def _watch(self) -> None:
        """Decide whether the broker takes what it is given."""
        if self._stalled:
            if not self._sent and self._producer.stats.connected:
                self._stalled = False
                self._log.info("the broker takes batches again", extra={"spooled_rows": self._spooled_rows()})
        elif self._sent and self._clock() - self._sent[0].at > self._spool_after_s:
            self._stall("nothing was acknowledged")

    def _stall(self, why: str) -> None:
        if self._stalled:
            return
        self._stalled = True
        where = "the spool" if self._spool is not None else "nowhere: there is no spool"
        self._log.warning(f"{why}; rows go to {where}", extra={"unacked_batches": len(self._sent)})
        # What is out may be lost with this process: keep it, under its address, so that the broker tells a repeat.
        self._save_sent()

    def _save_sent(self, measured_before: float = math.inf) -> None:
        """Keep batches in the spool that are not acknowledged yet."""
        if self._spool is None:
            return
        unsaved = itertools.islice(self._sent, self._saved, None)
        due = list(itertools.takewhile(lambda batch: batch.measured_at <= measured_before, unsaved))
        if not due:
            return
        try:
            self._spool.append_sent([(b.session, b.seq, b.rows, b.payload) for b in due])
            self._saved += len(due)
        except (BrokerError, OSError) as e:
            self._log.error("the spool cannot be written", extra={"reason": str(e)})

    def _renew_producer(self, error: BrokerError) -> None:
        """The broker refused this session for good: what it has not acknowledged goes to the spool."""
        self._log.error("the broker refused the session; a new one begins", extra={"reason": str(error)})
        self._save_sent()
        if self._spool is None:
            self.dropped_rows += sum(batch.rows for batch in self._sent)
        self._sent.clear()
        self._saved = 0
        self._producer.close(0)
        self._producer = self._make_producer(None, 1)

    def _linger_now_s(self) -> float:
        """Batches grow while acks take long: a broker that is slow is not helped by many small ones."""
        return max(self._linger_s, min(LINGER_S_MAX, 2 * self.totals.latency_p50_s - self._linger_s))

    def _spooled_rows(self) -> int:
        return self._spool.rows if self._spool is not None else 0

    def _count(self) -> None:
        totals, stats = self.totals, self._producer.stats
        totals.pending_batches = len(self._sent)
        totals.pending_bytes = stats.pending_bytes
        totals.credit_wait_seconds = stats.credit_wait_seconds
        totals.reconnects = stats.reconnects
        totals.possible_duplicates = stats.possible_duplicates
        totals.workers_connected = int(bool(stats.connected))
        ordered = sorted(self._latencies)
        if ordered:
            totals.latency_p50_s = ordered[len(ordered) // 2]
            totals.latency_p99_s = ordered[int(len(ordered) * 0.99)]
        totals.rows_dropped = self.dropped_rows
        if self._spool is not None:
            totals.spooled_rows = self._spool.rows
            totals.spooled_bytes = self._spool.bytes
            totals.rows_dropped += self._spool.rows_dropped


def _joined(parts: list[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    return Columns(
        np.concatenate([part.device for part in parts]),
        np.concatenate([part.metric for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.timestamp_ns for part in parts if part.timestamp_ns is not None]),
    )
