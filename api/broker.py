"""The API's side of the broker: what it says about itself, a producer for what clients send, rows for live tails.

Everything is opened when it is first needed and repairs itself: the API starts, answers and drains without a
broker, and says 503 only where one is needed.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import orjson
import urllib3

from api.errors import BrokerAway, Problem
from zmqbroker.client import Consumer, Producer, Receipt
from zmqbroker.errors import BrokerError, MessageTooLarge, PublishTimeout

log = logging.getLogger(__name__)

STATS_TIMEOUT_SECONDS: Final = 2.0
CONNECT_SECONDS: Final = 2.0
"""How long a request waits for a broker that is not there; one that is answers within milliseconds."""
SESSIONS_MAX: Final = 64
"""Writes with a key that may wait for the broker at the same time; each has a producer, and so a thread, of its own."""


class Broker:
    """One broker, seen from the API. Thread-safe."""

    def __init__(self, url: str, stats_url: str, topic: str, *, keys: Any = None) -> None:
        """``url``: the data socket; ``stats_url``: the broker's HTTP address, for ``/stats``; "" for none."""
        self.url = url
        self.topic = topic
        self.keys = keys
        self._stats_url = stats_url.rstrip("/")
        self._http = urllib3.PoolManager(num_pools=1, maxsize=2, retries=False, timeout=STATS_TIMEOUT_SECONDS)
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._sessions: dict[int, Producer] = {}

    def stats(self) -> dict[str, Any] | None:
        """The broker's own ``/stats``; None if it does not answer."""
        if not self._stats_url:
            return None
        try:
            answer = self._http.request("GET", f"{self._stats_url}/stats")
            found = orjson.loads(answer.data) if answer.status == 200 else None
        except (urllib3.exceptions.HTTPError, orjson.JSONDecodeError, OSError):
            return None
        return found if isinstance(found, dict) else None

    def publish(
        self, make: Callable[[int, int], bytes], rows: int, *, seconds: float, session: int | None = None
    ) -> Receipt:
        """Hand one batch to the broker, with a receipt for when it is durable.

        With ``session`` it goes in that one, whose batches the broker knows by their order; :meth:`release` it once all
        of them are durable.

        Raises :class:`BrokerAway` (503) if nobody answers or there is no room within ``seconds``: then it was not
        queued and will not arrive. A receipt that is not done in time may still arrive, once.
        """
        producer = self._open(session)
        try:
            self._wait_connected(producer, seconds)
        except BrokerAway:
            self.release(session)
            raise
        try:
            return producer.publish(make, rows, timeout=seconds)
        except PublishTimeout:
            raise BrokerAway("the broker takes no more at present: try again shortly") from None
        except MessageTooLarge as error:
            raise Problem(413, f"the broker refuses a batch of this size: {error}") from None
        except BrokerError as error:
            self._forget(producer)
            raise BrokerAway(f"the broker refused: {error}") from None

    def new_producer(self, session: int | None, first_seq: int = 1, name: str = "api-upload") -> Producer:
        """A producer of its own: its session names what it sends. The caller closes it."""
        return Producer(self.url, self.topic, session=session, first_seq=first_seq, name=name, keys=self.keys)

    def release(self, session: int | None) -> None:
        """A session of :meth:`publish` is over; idempotent."""
        with self._lock:
            producer = self._sessions.pop(session, None) if session is not None else None
        if producer is not None:
            producer.close(0)

    def live_consumer(self) -> Consumer:
        """A member of an ephemeral group of its own: begins at the end of the log and holds nothing back."""
        return Consumer(
            self.url,
            self.topic,
            f"api-live-{secrets.token_hex(6)}",
            credit=4,
            max_rows=50_000,
            max_bytes=8 << 20,
            linger_ms=50,
            durable=False,
            name="api-live",
            keys=self.keys,
        )

    def reachable(self, seconds: float) -> bool:
        """Whether the broker answers within ``seconds``."""
        try:
            self._wait_connected(self._open(), seconds)
        except BrokerAway:
            return False
        return True

    def _wait_connected(self, producer: Producer, seconds: float) -> None:
        deadline = time.monotonic() + min(seconds, CONNECT_SECONDS)
        while not producer.stats.connected:
            if time.monotonic() >= deadline:
                raise BrokerAway("the broker cannot be reached at present: try again shortly")
            time.sleep(0.01)

    def _forget(self, producer: Producer) -> None:
        """A session that the broker refused is of no further use: the next request opens another."""
        with self._lock:
            if self._producer is producer:
                self._producer = None
            self._sessions = {session: one for session, one in self._sessions.items() if one is not producer}
        producer.close(0)

    def _open(self, session: int | None = None) -> Producer:
        with self._lock:
            if session is not None:
                if session not in self._sessions:
                    self._sessions = {known: one for known, one in self._sessions.items() if not _is_over(one)}
                    if len(self._sessions) >= SESSIONS_MAX:
                        raise BrokerAway(f"{SESSIONS_MAX} writes wait for the broker already: try again shortly")
                    self._sessions[session] = self.new_producer(session, name="api-write")
                return self._sessions[session]
            if self._producer is None:
                self._producer = Producer(self.url, self.topic, name="api", keys=self.keys)
            return self._producer

    def close(self, seconds: float = 5.0) -> None:
        """Send what is still here, for ``seconds`` at most."""
        with self._lock:
            producer, self._producer = self._producer, None
            sessions, self._sessions = self._sessions, {}
        for one in sessions.values():
            one.close(0)
        if producer is not None:
            left = producer.close(seconds)
            if left:
                log.warning("batches were not confirmed by the broker before the end", extra={"batches": left})
        self._http.clear()


def _is_over(producer: Producer) -> bool:
    """Close a producer that has published and waits for nothing any more; whether that was so."""
    over = bool(producer.stats.published) and not producer.stats.pending
    if over:
        producer.close(0)
    return over
