"""The engine: workers take deliveries, run the steps, acknowledge; the breaker and a stop hold them back.

    worker:  receive -> decode -> lay out, validate, merge -> one block after the other, each stored once -> ack

Every worker is a thread with its own connection to the store, decoder and caches; they share the source, the
breaker and the counters. While one waits for the store, the others decode: the heavy steps (decompression,
NumPy, sockets) leave the interpreter lock.

Memory is bounded by ``credit`` deliveries of ``max_bytes`` in the client, plus one delivery laid out in columns
a worker (about 100 bytes a row), whatever the backlog.

Stopping: credit goes to 0; what is in hand is finished and acknowledged; what was received but not begun, and
everything while the store is away, is given back. Giving back loses nothing and counts against nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import random
from typing import Any

import numpy as np

from consumers.breaker import Breaker, BreakerPolicy
from consumers.deadletter import DeadLetters
from consumers.decode import Decoded, decode
from consumers.dictionary import Canonical, DictionaryCache
from consumers.doubt import Abandoned
from consumers.insert import Job, RejectsJob, SamplesJob, write
from consumers.link import GiveBack, SharedBreaker, StoreLink
from consumers.merge import merge
from consumers.ports import Delivery, Source, StoreSession
from consumers.ranges import RangeAddress
from consumers.rejects import blocks
from consumers.rows import lay_out
from consumers.stats import Stats
from consumers.validate import REASONS, Blank, Rules, validate
from telemetry import tracing
from telemetry.batch import BatchDecoder
from telemetry.catalogue import canonical, is_blank

RECEIVE_TIMEOUT_S = 0.2
"""How long a worker waits for a delivery before it looks whether it should stop."""


@dataclass(frozen=True)
class CollectorSettings:
    """``credit``: unsettled deliveries in this process; two a worker keep each busy while the next one travels."""

    workers: int = 2
    credit: int = 4
    rules: Rules = field(default_factory=Rules)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    dictionary_bytes_max: int = 32 << 20
    """Of decoded dictionaries a worker: raw bytes; as Python objects some six times as much."""


class Hold:
    """A delivery in hand: the lease as the inserting part sees it. ``given_up``: the process leaves, send no more."""

    def __init__(self, source: Source, delivery: Delivery, given_up: threading.Event) -> None:
        self._source = source
        self._delivery = delivery
        self._given_up = given_up

    def holds(self) -> bool:
        return not self._given_up.is_set() and self._source.holds(self._delivery)

    def inserting(self) -> None:
        self._source.working(self._delivery, "inserting")

    def waiting(self) -> None:
        self._source.working(self._delivery, "waiting")


class Collector:
    """Takes deliveries from ``source`` until :meth:`stop`; ``open_session`` connects to the store once a call."""

    def __init__(
        self,
        source: Source,
        open_session: Callable[[], StoreSession],
        settings: CollectorSettings,
        *,
        log: logging.Logger,
        stats: Stats,
        on_insert: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
        name_of_metric: Canonical = canonical,
        blank: Blank = is_blank,
    ) -> None:
        self._source = source
        self._open_session = open_session
        self._settings = settings
        self._log = log
        self.stats = stats
        self._on_insert = on_insert
        self._canonical = name_of_metric
        self._blank = blank
        self._stopping = threading.Event()
        self._give_back = threading.Event()
        self.breaker = SharedBreaker(Breaker(settings.breaker, random), clock, self._breaker_changed)
        self.breaker.open("no connection to the store yet")
        stats.state = lambda: self.breaker.state
        stats.opened = lambda: self.breaker.opened
        self._threads = [
            threading.Thread(target=self._work, args=(f"worker-{n}",), name=f"worker-{n}", daemon=True)
            for n in range(settings.workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Drain: take no more, finish what is in hand, give back the rest. True if every worker ended in time.

        The last quarter of the time is for giving back what could not be finished.
        """
        self._stopping.set()
        self._source.set_credit(0)
        deadline_s = time.monotonic() + timeout_s
        self._join(time.monotonic() + timeout_s * 0.75)
        self._give_back.set()
        return self._join(deadline_s)

    @property
    def alive(self) -> bool:
        """Whether every worker still works; they end only by :meth:`stop`, or by a defect."""
        return all(thread.is_alive() for thread in self._threads)

    def _join(self, deadline_s: float) -> bool:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _breaker_changed(self, closed: bool) -> None:
        if closed:
            self._log.info("the store answers: taking deliveries")
        else:
            self._log.warning("the store is away: no more deliveries are taken", extra={"reason": self.breaker.reason})
        if not self._stopping.is_set():
            self._source.set_credit(self._settings.credit if closed else 0)

    # --- one worker

    def _work(self, name: str) -> None:
        log = self._log
        link = StoreLink(
            name,
            self._open_session,
            self.breaker,
            self._stopping,
            self._stopping.wait,
            lambda what, reason: log.warning(what, extra={"worker": name, "reason": reason}),
        )
        steps = _Steps(self._settings, self._canonical, self._blank, self.stats)
        try:
            while not self._give_back.is_set():
                if self._stopping.is_set():
                    delivery = self._source.receive(0.0)
                    if delivery is None:
                        return
                    self._return(delivery, "stopping", "given_back")
                elif not link.ready():
                    delivery = self._source.receive(RECEIVE_TIMEOUT_S)
                    if delivery is None:
                        continue
                    if link.ready():  # the store came back while we waited
                        self._handle(delivery, link, steps)
                    else:
                        self._return(delivery, f"the store is away: {self.breaker.reason}", "given_back")
                else:
                    delivery = self._source.receive(RECEIVE_TIMEOUT_S)
                    if delivery is not None:
                        self._handle(delivery, link, steps)
        finally:
            link.release()
            link.drop()

    def _handle(self, delivery: Delivery, link: StoreLink, steps: _Steps) -> None:
        try:
            self._store(delivery, link, steps)
        except GiveBack as e:
            link.release()
            self._return(delivery, str(e), "given_back")
        except Exception as e:  # a defect, or no memory: the range must not be lost with the thread
            self._log.exception("a delivery failed", extra=_ids(delivery))
            self._return(delivery, f"{type(e).__name__}: {e}", "failed", failure=True)

    def _store(self, delivery: Delivery, link: StoreLink, steps: _Steps) -> None:
        since_ns = time.time_ns()
        times_ms = delivery.records["time_ms"]
        self.stats.took(
            delivery.range_id, len(times_ms), delivery.rows, float(times_ms.min()) if len(times_ms) else 0.0
        )
        if delivery.maybe_repeat:
            self.stats.doubted()
        decoded, jobs, rejected = steps.prepare(delivery)
        with tracing.inserting(decoded.batches, since_ns, _ids(delivery)):
            self._write(delivery, link, decoded, jobs, rejected)

    def _write(
        self, delivery: Delivery, link: StoreLink, decoded: Decoded, jobs: list[Job], rejected: dict[str, int]
    ) -> None:
        dead = DeadLetters(decoded.dead)
        address = RangeAddress.of(delivery)
        stored = found = 0
        for job in jobs:
            end = write(
                job,
                address,
                doubtful=delivery.maybe_repeat,
                link=link,
                lease=Hold(self._source, delivery, self._give_back),
                on_insert=self._inserted,
            )
            if isinstance(end, Abandoned):
                self._abandon(delivery, end)
                return
            for alarm in end.alarms:
                self._alarm(alarm, delivery)
            dead.refused(decoded, end.dead)
            if isinstance(job, SamplesJob):
                stored += sum(job.expected.values()) - sum(job.expected[gone] for gone in end.dead)
            found += end.found_rows
        self._source.ack(
            delivery,
            rejected_rows=sum(rejected.values()),
            dead_offsets=dead.offsets,
            reason=dead.reason if dead else "",
        )
        if dead:
            self._log.error(
                "batches went to the dead letters",
                extra={**_ids(delivery), "batches": len(dead), "reason": dead.reason},
            )
        if self._log.isEnabledFor(logging.DEBUG):
            self._log_batches(delivery, decoded, set(dead.offsets))
        self.stats.settled(
            delivery.range_id,
            stored=stored,
            rejected=rejected,
            dead_batches=len(dead),
            dead_rows=dead.rows,
            found_rows=found,
            repeats=decoded.repeats,
        )

    def _log_batches(self, delivery: Delivery, decoded: Decoded, dead: set[int]) -> None:
        """A line a batch, for those who follow one by its address."""
        about = _ids(delivery)
        for batch, offset in zip(decoded.batches, decoded.offsets, strict=True):
            fields = {"offset": offset, "session": batch.session, "seq": batch.seq, "rows": batch.rows}
            self._log.debug("batch dead" if offset in dead else "batch stored", extra={**about, **fields})

    def _inserted(self, seconds: float) -> None:
        self.stats.inserted(seconds)
        self._on_insert(seconds)

    def _abandon(self, delivery: Delivery, end: Abandoned) -> None:
        if end.alarm:
            self._alarm(end.reason, delivery)
        # Where the lease is over this tells a broker that thinks otherwise; it counts from the holder only.
        self._return(delivery, end.reason, "failed" if end.failure else "lease_over", end.failure)

    def _return(self, delivery: Delivery, reason: str, outcome: str, failure: bool = False) -> None:
        self._source.nack(delivery, reason, failure=failure)
        self._log.warning("gave a range back", extra={**_ids(delivery), "reason": reason, "failure": failure})
        self.stats.returned(delivery.range_id, outcome)

    def _alarm(self, text: str, delivery: Delivery) -> None:
        self.stats.alarmed()
        self._log.error("alarm: %s", text, extra=_ids(delivery))


class _Steps:
    """Decode to merge, with the caches of one worker."""

    def __init__(self, settings: CollectorSettings, name_of_metric: Canonical, blank: Blank, stats: Stats) -> None:
        self._decoder = BatchDecoder(settings.dictionary_bytes_max)
        self._cache = DictionaryCache(name_of_metric)
        self._rules = settings.rules
        self._blank = blank
        self._stats = stats

    def prepare(self, delivery: Delivery) -> tuple[Decoded, list[Job], dict[str, int]]:
        """The batches, the blocks to store, and how many rows are rejected for which reason."""
        started_s = time.perf_counter()
        decoded = decode(delivery.records, delivery.payloads(), self._decoder)
        decoded_s = time.perf_counter()
        self._stats.step("decode", decoded_s - started_s)
        if not decoded.batches:
            return decoded, [], {}
        rows = lay_out(decoded, self._cache)
        reasons = validate(rows, self._rules, self._blank)
        validated_s = time.perf_counter()
        self._stats.step("validate", validated_s - decoded_s)
        merged = merge(rows, reasons)
        jobs: list[Job] = [SamplesJob(block, rows.dictionaries) for block in merged.days]
        rejected: dict[str, int] = {}
        if merged.rejected is not None:
            found = blocks(merged.rejected, delivery.log_uuid, delivery.partition, decoded.offsets)
            jobs += [RejectsJob(block) for block in found]
            codes, counts = np.unique(merged.rejected.reason, return_counts=True)
            rejected = {REASONS[code]: count for code, count in zip(codes.tolist(), counts.tolist())}
        self._stats.step("merge", time.perf_counter() - validated_s)
        return decoded, jobs, rejected


def _ids(delivery: Delivery) -> dict[str, Any]:
    """What names a delivery in a log line."""
    return {
        "topic": delivery.topic,
        "partition": delivery.partition,
        "first": delivery.first,
        "last": delivery.last,
        "range": delivery.range_id,
        "attempt": delivery.attempt,
    }
