"""One subscription to the broker for all live tails of this process.

The hub is a member of an ephemeral group of its own: it holds nothing back at the broker, begins at the end of the log
and vanishes with it. It is there only while somebody listens (and IDLE_SECONDS beyond, so that a page that reloads
finds it). Every delivery becomes one event a tail, with the rows that the tail's filter lets through; tails with the
same filter share the encoding. What came within the last seconds is kept for clients that connect again
(``Last-Event-ID``).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from api.errors import Problem
from api.live import Event, LiveTail
from api.times import format_many
from telemetry.batch import Batch, BatchDecoder, BatchError
from telemetry.catalogue import is_blank
from zmqbroker.errors import BrokerError

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 10.0
REPLAY_SECONDS: Final = 60.0
REPLAY_ROWS: Final = 500_000
"""20 bytes a row: at most 10 MB of decoded batches are kept for Last-Event-ID."""
EVENT_ROWS_MAX: Final = 5_000
"""Rows of one event; a delivery with more becomes several."""


class TailFilter(NamedTuple):
    """Which rows a tail wants; an empty set wants all."""

    gpus: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    metrics: frozenset[str] = frozenset()


class _Kept(NamedTuple):
    number: int
    at: float
    batches: list[Batch]
    rows: int


class Hub:
    """Feeds live tails. ``open_consumer`` gives a new ephemeral consumer: :meth:`api.broker.Broker.live_consumer`."""

    def __init__(
        self,
        open_consumer: Callable[[], Any],
        *,
        clients_max: int,
        rows_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_consumer
        self._clients_max = clients_max
        self._rows_max = rows_max
        self._clock = clock
        self._run_id = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._tails: dict[LiveTail, TailFilter] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._number = 0
        self._kept: deque[_Kept] = deque()
        self._kept_rows = 0
        self._decoder = BatchDecoder()
        self.missed_rows = 0
        """Rows that slow clients missed, in all."""
        self.connected = False

    @property
    def clients(self) -> int:
        return len(self._tails)

    def subscribe(self, wanted: TailFilter, last_event_id: str = "") -> LiveTail:
        """A new tail; with ``last_event_id`` it begins with what came after that event, or with a gap if that is gone.

        A 503 problem if there are too many.
        """
        tail = LiveTail(self._rows_max, self._left)
        with self._lock:
            if len(self._tails) >= self._clients_max:
                raise Problem(503, "too many live tails: close one, or try again later", headers={"Retry-After": "10"})
            self._resume(tail, wanted, last_event_id)
            self._tails[tail] = wanted
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="live-hub", daemon=True)
                self._thread.start()
        return tail

    def _resume(self, tail: LiveTail, wanted: TailFilter, last_event_id: str) -> None:
        run, _, number = last_event_id.partition("-")
        if not last_event_id:
            return
        known = run == self._run_id and number.isdigit() and int(number) <= self._number
        oldest = self._kept[0].number if self._kept else self._number + 1
        if not known or int(number) + 1 < oldest:
            reason = "what came after this event is no longer kept here"
            tail.put(Event("", "gap", orjson.dumps({"missed_rows": None, "reason": reason}), 0))
        if known:
            for kept in self._kept:
                if kept.number > int(number):
                    for event in self._events(kept, wanted):
                        tail.put(event)

    def _left(self, tail: LiveTail) -> None:
        with self._lock:
            self._tails.pop(tail, None)
            self.missed_rows += tail.missed_rows

    def close(self) -> None:
        """End all tails and leave the broker."""
        self._stopping.set()
        for tail in list(self._tails):
            tail.close()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        consumer = None
        idle_since = self._clock()
        try:
            while not self._stopping.is_set():
                if self._tails:
                    idle_since = self._clock()
                elif self._clock() - idle_since > IDLE_SECONDS and self._leave():
                    return
                try:
                    if consumer is None:
                        consumer = self._open()
                    delivery = consumer.receive(0.25)
                    self.connected = bool(consumer.connected)
                    if delivery is not None:
                        self.deliver(delivery)
                        consumer.ack(delivery)
                except BrokerError as error:
                    log.warning("the live subscription ended and is opened again", extra={"reason": str(error)})
                    self.connected = False
                    if consumer is not None:
                        consumer.close(0)
                        consumer = None
                    self._stopping.wait(1.0)
        finally:
            self.connected = False
            if consumer is not None:
                consumer.close(1.0)

    def _leave(self) -> bool:
        """True if still nobody listens: then this thread ends, and the next subscriber starts another."""
        with self._lock:
            if self._tails:
                return False
            self._thread = None
            self._kept.clear()
            self._kept_rows = 0
            return True

    def deliver(self, delivery: Any) -> None:
        """Hand one delivery to every tail and keep it for a while. What cannot be decoded is for the collectors."""
        if log.isEnabledFor(logging.DEBUG):
            for record in delivery.records:
                names = {name: int(record[name]) for name in ("offset", "session", "seq", "rows")}
                log.debug("batch seen live", extra={"topic": delivery.topic, "partition": delivery.partition, **names})
        batches = []
        for payload in delivery.payloads():
            try:
                batches.append(self._decoder.decode(bytes(payload)))
            except BatchError:
                continue
        if not batches:
            return
        with self._lock:
            self._number += 1
            kept = _Kept(self._number, self._clock(), batches, sum(batch.rows for batch in batches))
            self._kept.append(kept)
            self._kept_rows += kept.rows
            while self._kept and (self._kept_rows > REPLAY_ROWS or self._clock() - self._kept[0].at > REPLAY_SECONDS):
                self._kept_rows -= self._kept.popleft().rows
            tails = list(self._tails.items())
        made: dict[TailFilter, list[Event]] = {}
        for tail, wanted in tails:
            if wanted not in made:
                made[wanted] = self._events(kept, wanted)
            for event in made[wanted]:
                tail.put(event)

    def _events(self, kept: _Kept, wanted: TailFilter) -> list[Event]:
        """The rows of one delivery that a filter lets through, as events of at most EVENT_ROWS_MAX rows.

        Rows beyond a client's whole buffer are not encoded at all, only counted as missed.
        """
        rows: list[dict[str, Any]] = []
        left = self._rows_max
        missed = 0
        for batch in kept.batches:
            chosen = _chosen(batch, wanted)
            if len(chosen) > left:
                missed += len(chosen) - left
                chosen = chosen[len(chosen) - left :] if left else chosen[:0]
            left -= len(chosen)
            rows += _documents(batch, chosen)
        event_id = f"{self._run_id}-{kept.number}"
        events = []
        if missed:
            reason = "more rows arrived at once than a client's buffer holds: narrow the filter"
            events.append(Event("", "gap", orjson.dumps({"missed_rows": missed, "reason": reason}), 0))
        for start in range(0, len(rows), EVENT_ROWS_MAX):
            part = rows[start : start + EVENT_ROWS_MAX]
            last = start + EVENT_ROWS_MAX >= len(rows)
            # Only the last part carries the id: whoever resumes after a part gets the whole delivery again.
            events.append(Event(event_id if last else "", "telemetry", orjson.dumps({"telemetry": part}), len(part)))
        return events


def _chosen(batch: Batch, wanted: TailFilter) -> np.ndarray:
    """Indices of the rows that the filter lets through; rows without a value are never among them."""
    keep = np.isfinite(batch.value) & ~is_blank(batch.value)
    dictionary = batch.dictionary
    if wanted.gpus or wanted.hosts:
        devices = np.array(
            [
                (not wanted.gpus or device.gpu_id in wanted.gpus)
                and (not wanted.hosts or device.hostname in wanted.hosts)
                for device in dictionary.devices
            ],
            dtype=bool,
        )
        keep &= devices[batch.device_code]
    if wanted.metrics:
        metrics = np.array([metric in wanted.metrics for metric in dictionary.metrics], dtype=bool)
        keep &= metrics[batch.metric_code]
    return np.flatnonzero(keep)


def _documents(batch: Batch, rows: np.ndarray) -> list[dict[str, Any]]:
    devices, metrics = batch.dictionary.devices, batch.dictionary.metrics
    times = format_many(batch.timestamp_ns[rows] // 1_000_000)
    return [
        {
            "timestamp": ts,
            "gpu_id": devices[device].gpu_id,
            "metric_name": metrics[metric],
            "value": value,
            "device": devices[device].device,
            "hostname": devices[device].hostname,
        }
        for ts, device, metric, value in zip(
            times,
            batch.device_code[rows].tolist(),
            batch.metric_code[rows].tolist(),
            batch.value[rows].tolist(),
            strict=True,
        )
    ]
