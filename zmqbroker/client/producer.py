"""The producer that applications use: thread-safe, with a thread of its own for the socket."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from crc32c import crc32c

from zmqbroker.client.producing import ProducerConversation
from zmqbroker.client.transport import Link
from zmqbroker.errors import BatchesRefused, BrokerError, MessageTooLarge, ProducerClosed, PublishTimeout
from zmqbroker.protocol import HEADER_BYTES, NO_PARTITION


class ProducerStats(NamedTuple):
    """Totals since the producer was made, and what is pending now."""

    published: int
    acked: int
    rows_published: int
    rows_acked: int
    pending: int
    pending_bytes: int
    refused: int
    reconnects: int
    credit_wait_seconds: float
    possible_duplicates: int
    connected: bool
    failed: int = 0
    """Batches that were refused for good; ``refused`` counts every refusal, those that were sent again too."""


class Receipt:
    """What became of one batch. Cheap: it holds a seq, and asks the producer."""

    __slots__ = ("_producer", "seq")

    def __init__(self, producer: Producer, seq: int) -> None:
        self._producer = producer
        self.seq = seq

    @property
    def session(self) -> int:
        """With ``seq`` the batch's address, the same in every log, in the broker and in the store."""
        return self._producer.session

    @property
    def done(self) -> bool:
        """Durable at the broker, or refused for good."""
        return self.seq not in self._producer._conversation.pending

    @property
    def error(self) -> BrokerError | None:
        """Why it was refused for good, if it was (the producer remembers the latest ten thousand)."""
        return self._producer._conversation.failed.get(self.seq)

    def wait(self, timeout: float | None = None) -> bool:
        """True once the batch is durable; False at the time-out. Raises what the broker refused it for."""
        return self._producer._wait_for(self.seq, timeout)

    def add_done_callback(self, call: Callable[[Receipt], None]) -> None:
        """``call(receipt)`` in the producer's thread once it is done; at once if it is."""
        self._producer._call_when_done(self, call)


class Producer:
    """Publishes batches into one topic and keeps each until the broker says that it is durable.

    ``session``: random unless resumed (R8); ``first_seq`` then continues where the last run ended.
    ``failover``: "hold" (a batch once sent goes to the same log alone) or "resend" (R7).
    ``buffer_bytes``: how much may wait here; above it :meth:`publish` blocks.
    """

    def __init__(
        self,
        url: str,
        topic: str = "gpu-telemetry",
        *,
        session: int | None = None,
        first_seq: int = 1,
        name: str = "",
        failover: str = "hold",
        buffer_bytes: int = 8 << 20,
        keys: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = secrets.randbits(64) if session is None else session
        self._clock = clock
        self._buffer_bytes = buffer_bytes
        # One lock for the conversation; the condition wraps it for those who wait. Entering the bare lock is cheaper.
        self._mutex = threading.RLock()
        self._lock = threading.Condition(self._mutex)
        self._conversation = ProducerConversation(
            self.session,
            topic,
            incarnation=time.time_ns(),
            first_seq=first_seq,
            name=name,
            failover=failover,
            resumed=session is not None,
            rng=random.Random(secrets.randbits(64)),
        )
        self._callbacks: dict[int, list[tuple[Receipt, Callable[[Receipt], None]]]] = {}
        self._credit_wait_seconds = 0.0
        self._told_given_up = 0
        """Batches refused for good that a flush has told of."""
        self._closed = False
        self._link = Link(
            url,
            self._conversation,
            self._lock,
            name=f"producer-{topic}",
            clock=clock,
            secure=keys.secure_client if keys is not None else None,
        )
        self._link.start()

    @property
    def next_seq(self) -> int:
        return self._conversation.next_seq

    def publish(
        self,
        payload: bytes | Callable[[int, int], bytes],
        rows: int = 1,
        key: bytes | None = None,
        timeout: float | None = None,
        *,
        partition: int = NO_PARTITION,
        count: int = 1,
    ) -> Receipt:
        """Queue one batch; it is safe when the receipt is done. Blocks while the buffer is full.

        ``payload`` may be a function of (session, seq), for batches that carry their own address. ``key`` chooses the
        partition by its hash. ``timeout`` in seconds; None waits for ever. Raises :class:`PublishTimeout` (not queued),
        :class:`MessageTooLarge`, :class:`ProducerClosed`, or what the broker refused this session for.
        """
        conversation = self._conversation
        with self._mutex:
            if conversation.pending_bytes >= self._buffer_bytes or conversation.fatal is not None or self._closed:
                self._wait_for_room(timeout)
            data = payload(self.session, conversation.next_seq) if callable(payload) else payload
            limit = conversation.message_bytes_max
            if limit and len(data) > limit:
                raise MessageTooLarge(len(data), limit)
            key_hash = crc32c(key) if key is not None else None
            seq = conversation.add(data, rows, crc32c(data), key_hash, partition, count)
        if self._link.asleep:
            self._link.wake()
        return Receipt(self, seq)

    def _wait_for_room(self, timeout: float | None) -> None:
        """With the lock held."""
        conversation = self._conversation
        start = self._clock()
        deadline = None if timeout is None else start + timeout
        while True:
            if self._closed:
                raise ProducerClosed("the producer was closed")
            if conversation.fatal is not None:
                raise conversation.fatal
            if conversation.pending_bytes < self._buffer_bytes:
                break
            left = None if deadline is None else deadline - self._clock()
            if left is not None and left <= 0:
                self._credit_wait_seconds += self._clock() - start
                why = "no credit" if conversation.connected else "no broker answers"
                raise PublishTimeout(f"{why} for {timeout:g} s; {len(conversation.pending)} batches wait")
            self._lock.wait(min(left, 1.0) if left is not None else 1.0)
        self._credit_wait_seconds += self._clock() - start

    def flush(self, timeout: float | None = None) -> bool:
        """True once everything published is durable; False at the time-out.

        Raises what the broker refused this session for, or :class:`BatchesRefused` where batches since the last call
        will never be durable: after that the others are.
        """
        conversation = self._conversation
        with self._lock:
            done = self._until(lambda: not conversation.pending, timeout)
            if count := conversation.given_up - self._told_given_up:
                self._told_given_up = conversation.given_up
                raise BatchesRefused(count, list(conversation.failed.values())[-min(count, len(conversation.failed))])
            return done

    def close(self, timeout: float = 10.0) -> int:
        """Flush for at most ``timeout`` seconds, leave, and return how many batches are not durable: still unacked, or
        refused without a :meth:`flush` that told."""
        with self._lock:
            already, self._closed = self._closed, True
            if not already:
                try:
                    self._until(lambda: not self._conversation.pending, timeout)
                except BrokerError:
                    pass
                self._conversation.close()
            self._lock.notify_all()
        if not already:
            self._link.end(2.0)
        return len(self._conversation.pending) + self._conversation.given_up - self._told_given_up

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> ProducerStats:
        c = self._conversation
        return ProducerStats(
            c.published,
            c.acked,
            c.rows_published,
            c.rows_acked,
            len(c.pending),
            c.pending_bytes,
            c.refused,
            max(0, c.opening.count - 1),
            self._credit_wait_seconds,
            c.possible_duplicates,
            c.connected,
            c.given_up,
        )

    @property
    def error(self) -> BrokerError | None:
        """Why the broker refused this session for good, if it did."""
        return self._conversation.fatal

    def _until(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else self._clock() + timeout
        while not reached():
            if self._conversation.fatal is not None:
                raise self._conversation.fatal
            left = None if deadline is None else deadline - self._clock()
            if left is not None and left <= 0:
                return False
            self._lock.wait(min(left, 1.0) if left is not None else 1.0)
        return True

    def _wait_for(self, seq: int, timeout: float | None) -> bool:
        conversation = self._conversation
        with self._lock:
            done = self._until(lambda: seq not in conversation.pending, timeout)
            if seq in conversation.failed:
                raise conversation.failed[seq]
            return done

    def _call_when_done(self, receipt: Receipt, call: Callable[[Receipt], None]) -> None:
        with self._lock:
            if receipt.seq in self._conversation.pending:
                self._callbacks.setdefault(receipt.seq, []).append((receipt, call))
                self._conversation.on_acked = self._acked
                return
        call(receipt)

    def _acked(self, first: int, last: int) -> None:
        for seq in [s for s in self._callbacks if first <= s <= last]:
            for receipt, call in self._callbacks.pop(seq):
                call(receipt)


__all__ = ["HEADER_BYTES", "Producer", "ProducerStats", "Receipt"]
