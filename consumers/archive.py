"""``telemetry-collector archive``: a second consumer group that keeps cold copies, every row once.

Deliveries are gathered until a commit is worth its files, written, made to count by one checkpoint, and only then
acknowledged. Whatever is delivered again is recognised by its offsets. One process writes a directory; for two
archives use two groups.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from consumers.archive_formats import FORMATS, Format
from consumers.checkpoint import Directory
from consumers.collector import RECEIVE_TIMEOUT_S
from consumers.deadletter import DeadLetters
from consumers.decode import decode
from consumers.dictionary import Canonical, DictionaryCache
from consumers.ports import Delivery, Source
from consumers.rows import lay_out
from consumers.tables import to_table
from consumers.validate import Blank, Rules, validate
from telemetry.batch import BatchDecoder
from telemetry.catalogue import canonical, is_blank


@dataclass(frozen=True)
class ArchiveSettings:
    """A commit is made after ``rows_max`` rows, ``every_s`` seconds, or when ``credit`` deliveries are held."""

    rows_max: int = 2_000_000
    every_s: float = 60.0
    credit: int = 10
    rules: Rules = field(default_factory=Rules)


@dataclass
class Held:
    """A delivery whose rows wait for the commit."""

    delivery: Delivery
    rejected_rows: int
    dead: DeadLetters


class Archiver:
    """Takes deliveries from ``source`` and keeps them in ``directory``: :meth:`run`, in one thread."""

    def __init__(
        self,
        source: Source,
        directory: Directory,
        settings: ArchiveSettings,
        *,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        name_of_metric: Canonical = canonical,
        blank: Blank = is_blank,
    ) -> None:
        self._source = source
        self._settings = settings
        self._log = log
        self._clock = clock
        self._blank = blank
        self._decoder = BatchDecoder()
        self._cache = DictionaryCache(name_of_metric)
        self._directory = directory
        self._format: Format = FORMATS[directory.checkpoint.format](directory.path)
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._held: list[Held] = []
        self._oldest_s = 0.0
        self.received_rows = self.rejected_rows = self.skipped_records = self.dead_batches = 0
        self._format.recover(self._directory.checkpoint)

    @property
    def archived_rows(self) -> int:
        """Rows in the archive, over all its lives."""
        return self._directory.checkpoint.rows

    @property
    def commits(self) -> int:
        return self._directory.checkpoint.commits

    def run(self, stopping: threading.Event, failed: Callable[[], bool] = lambda: False) -> None:
        """Until ``stopping`` is set (or ``failed()``); what is held then is committed."""
        self._source.set_credit(self._settings.credit)
        try:
            while not stopping.is_set() and not failed():
                self.take(self._source.receive(RECEIVE_TIMEOUT_S))
            self._source.set_credit(0)
            self.commit()
            while (delivery := self._source.receive(0.0)) is not None:
                self._source.nack(delivery, "stopping", failure=False)
        finally:
            self._directory.close()

    def take(self, delivery: Delivery | None) -> None:
        """Hold a delivery, if there is one, and commit if it is time."""
        if delivery is not None:
            if not self._held:
                self._oldest_s = self._clock()
            self._held.append(self._hold(delivery))
        elif not self._held:
            return
        full = self._rows >= self._settings.rows_max or len(self._held) >= self._settings.credit
        if full or self._clock() - self._oldest_s >= self._settings.every_s:
            self.commit()

    def _hold(self, delivery: Delivery) -> Held:
        known = self._directory.checkpoint.partition(delivery.log_uuid, delivery.partition)
        new = ~known.contains(delivery.records["offset"])
        payloads = [payload for payload, wanted in zip(delivery.payloads(), new.tolist()) if wanted]
        self.skipped_records += len(new) - len(payloads)
        decoded = decode(delivery.records[new], payloads, self._decoder)
        held = Held(delivery, 0, DeadLetters(decoded.dead))
        self.dead_batches += len(held.dead)
        if decoded.batches:
            rows = lay_out(decoded, self._cache)
            table = to_table(rows, validate(rows, self._settings.rules, self._blank))
            self.received_rows += len(rows.value)
            held.rejected_rows = len(rows.value) - table.num_rows
            self.rejected_rows += held.rejected_rows
            self._tables.append(table)
            self._rows += table.num_rows
        return held

    def commit(self) -> None:
        """Write what is held, make it count, acknowledge it."""
        if not self._held:
            return
        checkpoint = self._directory.checkpoint
        started_s = self._clock()
        checkpoint.commits += 1
        checkpoint.rows += self._rows
        checkpoint.pending = []
        if self._rows:
            self._format.write(pa.concat_tables(self._tables), checkpoint)
        for held in self._held:
            delivery = held.delivery
            checkpoint.partition(delivery.log_uuid, delivery.partition).add(delivery.first, delivery.last)
        self._directory.write()
        self._format.finish(checkpoint)
        for held in self._held:
            self._source.ack(
                held.delivery,
                rejected_rows=held.rejected_rows,
                dead_offsets=held.dead.offsets,
                reason=held.dead.reason if held.dead else "",
            )
        self._log.info(
            "archived",
            extra={"rows": self._rows, "deliveries": len(self._held), "seconds": round(self._clock() - started_s, 3)},
        )
        self._tables, self._rows, self._held = [], 0, []
