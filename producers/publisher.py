"""Publishing batches and knowing which are durable: a thin layer over the broker's client."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from telemetry import tracing
from zmqbroker.errors import PublishTimeout

Mark = TypeVar("Mark")

WAIT_S: Final = 0.2
"""How long one attempt to publish blocks while the broker grants no credit: then a stop is looked for."""

LATENCIES_KEPT: Final = 512

_log = logging.getLogger(__name__)


def load_producer(name: str) -> Callable[..., Any]:
    """The class that ``package.module:Class`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def log_batch(log: logging.Logger, what: str, receipt: Any, rows: int, **fields: Any) -> None:
    """One line about one batch, for those who follow it by its address."""
    log.debug(what, extra={"session": receipt.session, "seq": receipt.seq, "rows": rows, **fields})


class _InFlight(NamedTuple):
    receipt: Any
    rows: int
    at: float
    mark: Any


class Publisher(Generic[Mark]):
    """Publishes in order and tells how far everything is durable: ``floor`` is the mark of the newest batch such that
    it and all before it are acknowledged.
    """

    def __init__(self, producer: Any, floor: Mark, clock: Callable[[], float] = time.monotonic) -> None:
        self.producer = producer
        self.floor = floor
        self.rows_published = 0
        self.rows_acked = 0
        self.batches_published = 0
        self.batches_acked = 0
        self._clock = clock
        self._in_flight: deque[_InFlight] = deque()
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)

    @property
    def in_flight(self) -> int:
        """Batches published and not yet below the floor."""
        return len(self._in_flight)

    def publish(self, payload: Callable[[int, int], bytes], rows: int, mark: Mark, stopping: threading.Event) -> bool:
        """Publish one batch; ``mark`` is what ``floor`` becomes once it is durable. False if stopped before it went."""
        while not stopping.is_set():
            try:
                receipt = self.producer.publish(payload, rows, timeout=WAIT_S)
            except PublishTimeout:
                self.settle()
                continue
            self._in_flight.append(_InFlight(receipt, rows, self._clock(), mark))
            self.rows_published += rows
            self.batches_published += 1
            if _log.isEnabledFor(logging.DEBUG):
                log_batch(_log, "batch published", receipt, rows)
            self.settle()
            return True
        return False

    def settle(self) -> None:
        """Move the floor over everything that has become durable."""
        in_flight = self._in_flight
        while in_flight and in_flight[0].receipt.done:
            # Not waiting, only asking: it raises what the broker refused the batch for.
            in_flight[0].receipt.wait(0)
            batch = in_flight.popleft()
            self.floor = batch.mark
            self.rows_acked += batch.rows
            self.batches_acked += 1
            if _log.isEnabledFor(logging.DEBUG):
                log_batch(_log, "batch acknowledged", batch.receipt, batch.rows)
            tracing.published(batch.receipt)
            self._latencies.append(self._clock() - batch.at)

    def drain(self, until: Callable[[], bool]) -> int:
        """Wait until all is durable or ``until()`` says enough; batches that are not durable."""
        while self._in_flight and not until():
            self._in_flight[0].receipt.wait(0.1)
            self.settle()
        return len(self._in_flight)

    def latency_s(self, share: float) -> float:
        """Quantile (0 to 1) of publish to ack over the last batches, seconds; 0 if there are none."""
        if not self._latencies:
            return 0.0
        ordered = sorted(self._latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
