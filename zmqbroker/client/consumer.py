"""The consumer that applications use: thread-safe, with a thread of its own for the socket and the heartbeats."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zmqbroker.client.consuming import ConsumerConversation, Delivery
from zmqbroker.client.transport import Link
from zmqbroker.errors import BrokerError, ConsumerClosed
from zmqbroker.protocol import WorkState

_STATES = {"inserting": WorkState.INSERTING, "waiting": WorkState.WAITING}


class ConsumerStats(NamedTuple):
    deliveries: int
    settled: int
    repeats: int
    holding: int
    connected: bool
    reconnects: int


class Consumer:
    """One member of a consumer group.

    ``credit``: deliveries that may be held at once; each is at most ``max_rows`` and ``max_bytes``, so memory is
    bounded by credit x max_bytes. ``max_rows``, ``max_bytes``, ``linger_ms`` and ``mode`` belong to the group: the
    first member sets them. ``durable=False`` makes an ephemeral group, which begins at the end of the log and vanishes.
    """

    def __init__(
        self,
        url: str,
        topic: str = "gpu-telemetry",
        group: str = "clickhouse",
        *,
        credit: int = 2,
        max_rows: int = 250_000,
        max_bytes: int = 32 << 20,
        linger_ms: int = 100,
        start: str | None = None,
        mode: str = "shared",
        durable: bool = True,
        name: str = "",
        keys: Any = None,
        options: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Condition()
        self._conversation = ConsumerConversation(
            secrets.randbits(64),
            topic,
            group,
            credit=credit,
            name=name,
            rng=random.Random(secrets.randbits(64)),
            options={
                "max_rows": max_rows,
                "max_bytes": max_bytes,
                "linger_ms": linger_ms,
                "mode": mode,
                "durable": durable,
                **({"start": start} if start else {}),
                **(options or {}),
            },
        )
        self._closed = False
        self._link = Link(
            url,
            self._conversation,
            self._lock,
            name=f"consumer-{group}",
            clock=clock,
            secure=keys.secure_client if keys is not None else None,
        )
        self._link.start()

    def receive(self, timeout: float | None = None) -> Delivery | None:
        """The next delivery, or None at the time-out (seconds). Raises what the broker refused this consumer for."""
        deadline = None if timeout is None else self._clock() + timeout
        conversation = self._conversation
        with self._lock:
            while not conversation.ready:
                if self._closed:
                    raise ConsumerClosed("the consumer was closed")
                if conversation.fatal is not None:
                    raise conversation.fatal
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    return None
                self._lock.wait(min(left, 1.0) if left is not None else 1.0)
            return conversation.ready.popleft()

    def ack(self, delivery: Delivery, rejected_rows: int = 0, dead: Sequence[int] = (), reason: str = "") -> None:
        """The whole range is done; records at the ``dead`` offsets go to the dead-letter topic for ``reason``."""
        with self._lock:
            self._conversation.settle(delivery, rejected_rows, list(dead), reason)
        self._link.wake()

    def nack(self, delivery: Delivery, reason: str, dead: bool = False, failure: bool = True) -> None:
        """Give the range back: failed (counted, retried later), ``dead`` (dead-lettered), or just released."""
        with self._lock:
            self._conversation.nack(delivery, reason, dead, failure)
        self._link.wake()

    def working(self, delivery: Delivery, state: str) -> None:
        """Say what is done with the range: "inserting", or "waiting" (for the store: its lease has no cap)."""
        with self._lock:
            self._conversation.working(delivery, _STATES[state])
        self._link.wake()

    def set_credit(self, credit: int) -> None:
        """Hold at most ``credit`` deliveries from now on; 0 takes no more."""
        with self._lock:
            self._conversation.credit = credit
        self._link.wake()

    @property
    def credit(self) -> int:
        return self._conversation.credit

    @property
    def connected(self) -> bool:
        return self._conversation.connected

    @property
    def silence_s(self) -> float:
        """Seconds since we last said something that the broker has answered: well below the group's ``ack_timeout`` a
        lease is surely ours (R12), also when this very process stood still meanwhile."""
        return self._clock() - self._conversation.lease_from_s

    def holds(self, delivery: Delivery) -> bool:
        """Whether the range is still ours as far as the broker has told us; ask :attr:`silence_s` as well (R12)."""
        return self._conversation.holds(delivery)

    @property
    def error(self) -> BrokerError | None:
        return self._conversation.fatal

    @property
    def stats(self) -> ConsumerStats:
        c = self._conversation
        return ConsumerStats(
            c.deliveries, c.settled, c.repeats, len(c.holding), c.connected, max(0, c.opening.count - 1)
        )

    def close(self, timeout: float = 5.0) -> None:
        """Leave: what is held and not settled goes to another member at once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._conversation.close()
            self._lock.notify_all()
        self._link.end(timeout)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
