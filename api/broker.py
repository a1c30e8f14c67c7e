"""The API's side of the broker: what it says about itself, a producer for what clients send, rows for live tails.

Everything is opened when it is first needed and repairs itself: the API starts, answers and drains without a
broker, and says 503 only where one is needed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import orjson
import urllib3

from api.errors import BrokerAway
from zmqbroker.client import Producer
from zmqbroker.errors import BrokerError, MessageTooLarge, PublishTimeout

log = logging.getLogger(__name__)

STATS_TIMEOUT_SECONDS: Final = 2.0


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

    def publish(self, make: bytes | Callable[[int, int], bytes], rows: int, *, seconds: float) -> tuple[int, int]:
        """Publish one batch and wait until it is durable; (session, seq) of it.

        Raises :class:`BrokerAway` (503) if there was no credit or no acknowledgement within ``seconds``. After the
        latter the batch is still kept and sent again by the producer: it may yet arrive, once.
        """
        producer = self._open()
        try:
            receipt = producer.publish(make, rows, timeout=seconds)
            durable = receipt.wait(seconds)
        except PublishTimeout:
            raise BrokerAway("the broker takes no more at present: try again shortly") from None
        except MessageTooLarge as error:
            raise BrokerAway(f"the broker refuses a batch of this size: {error}") from None
        except BrokerError as error:
            raise BrokerAway(f"the broker refused: {error}") from None
        if not durable:
            raise BrokerAway("the broker did not confirm in time; what was sent is kept here and sent again")
        return producer.session, receipt.seq

    def _open(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer(self.url, self.topic, name="api", keys=self.keys)
            return self._producer

    def close(self, seconds: float = 5.0) -> None:
        """Send what is still here, for ``seconds`` at most."""
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            left = producer.close(seconds)
            if left:
                log.warning("batches were not confirmed by the broker before the end", extra={"batches": left})
        self._http.clear()
