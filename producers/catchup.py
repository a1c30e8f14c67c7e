"""What was spooled, to the broker: oldest first, under the addresses it has, in a share of the broker's time.

A burst is published and its acknowledgement awaited; then nothing for so long that publishing took only the wanted
share of the time. So a broker that is quick is used much, a slow one little, and one that grants no credit not at all,
without anybody saying how quick it is. Bursts grow while they are taken quickly.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final

from producers.spool import Spool, Spooled
from producers.supervisor import Totals
from zmqbroker.errors import BrokerError, PublishTimeout

BURST_BYTES_MIN: Final = 64 << 10
BURST_BYTES_MAX: Final = 8 << 20
QUICK_S: Final = 0.1
SLOW_S: Final = 1.0


class SharePace:
    """How much may go and when: ``share`` (0 to 1) of the time at most. A state machine: time comes in by the clock."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._burst_bytes = BURST_BYTES_MIN
        self._began: float | None = None
        self._rests_until = 0.0

    def bytes_now(self) -> int:
        """The size of the burst that may begin; 0 while one is out or the pause after it lasts."""
        return self._burst_bytes if self._began is None and self._clock() >= self._rests_until else 0

    def begin(self) -> None:
        """A burst goes out."""
        self._began = self._clock()

    def end(self, acknowledged_at: float) -> None:
        """All of it is durable since ``acknowledged_at``."""
        if self._began is None:
            return
        took = max(0.0, acknowledged_at - self._began)
        self._rests_until = self._began + took / self._share
        self._began = None
        if took < QUICK_S:
            self._burst_bytes = min(2 * self._burst_bytes, BURST_BYTES_MAX)
        elif took > SLOW_S:
            self._burst_bytes = max(self._burst_bytes // 2, BURST_BYTES_MIN)


class CatchUp:
    """Publishes what a spool holds. Used from one thread, a few times a second.

    ``make_producer(session, first_seq)``: a producer that goes on with a session. ``refused(rows, error)`` is told of
    what the broker will never take.
    """

    def __init__(
        self,
        spool: Spool,
        make_producer: Callable[[int | None, int], Any],
        *,
        share: float,
        totals: Totals,
        refused: Callable[[int, BrokerError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._make_producer = make_producer
        self._totals = totals
        self._refused = refused
        self._clock = clock
        self._pace = SharePace(share, clock)
        self._producer: Any = None
        self._sent: deque[tuple[Any, Spooled]] = deque()
        self._acknowledged_at = 0.0
        self._after = -1
        self._next = (0, 0)

    def pump(self, live_session: int, live_pending: Collection[int]) -> None:
        """Settle what is durable, begin the next burst. ``live_pending``: seqs of the live session not settled yet."""
        self._settle()
        size = self._pace.bytes_now()
        if self._sent or not size:
            return
        for batch in self._spool.oldest(self._after, size):
            if batch.session == live_session:
                # Sent by the live producer and kept here while it waited: that one sees to it.
                if batch.seq in live_pending or self._sent:
                    break
                self._spool.done(batch.offset)
            elif not self._publish(batch):
                break
            self._after = batch.offset

    def close(self) -> None:
        """Let go of the session that is being sent."""
        if self._producer is not None:
            self._producer.close(0)
            self._producer = None

    def _settle(self) -> None:
        while self._sent and self._sent[0][0].done:
            receipt, batch = self._sent.popleft()
            self._spool.done(batch.offset)
            if receipt.error is not None:
                self._refused(batch.rows, receipt.error)
                continue
            self._totals.rows_acked += batch.rows
            self._totals.batches_acked += 1
        if not self._sent:
            self._pace.end(self._acknowledged_at)

    def _publish(self, batch: Spooled) -> bool:
        if self._producer is None or (batch.session, batch.seq) != self._next:
            if self._sent:
                return False
            self.close()
            self._producer = self._make_producer(batch.session, batch.seq)
        try:
            receipt = self._producer.publish(batch.payload, batch.rows, timeout=0)
        except PublishTimeout:
            return False
        except BrokerError as e:
            self._refused(batch.rows + sum(sent.rows for _, sent in self._sent), e)
            self._sent.clear()
            self._pace.end(self._clock())
            self.close()
            self._after = batch.offset
            return False
        if not self._sent:
            self._pace.begin()
        receipt.add_done_callback(self._acknowledged)
        self._next = (batch.session, batch.seq + 1)
        self._sent.append((receipt, batch))
        return True

    def _acknowledged(self, receipt: Any) -> None:
        # In the producer's thread: the moment itself, not that of the next look.
        self._acknowledged_at = self._clock()
