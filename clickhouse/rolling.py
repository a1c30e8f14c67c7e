"""``telemetry-clickhouse rollup``: the rollup as a process that waits for the store and for minutes to end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.errors import StoreError, StoreNotReady
from clickhouse.rollup import Progress, Rollup
from clickhouse.verify import doubled_lately
from telemetry import metrics
from telemetry.backoff import Backoff
from telemetry.health import Check
from telemetry.service import Service

CHECK_SECONDS: Final = 60.0
"""How often the newest rows are looked at for batches that are stored twice (R19)."""

REST_A_LOOK: Final = 2.0
"""Rest so many times as long as the look took, or longer: while a backlog drains, rows come first. A rollup reads rows
several times as fast as they can be inserted, so a third of the time is enough to keep up."""


class RollupProcess:
    """Looks every ``interval_s`` seconds. Whatever goes wrong with the store is waited out."""

    def __init__(self, address: StoreAddress, interval_s: float, service: Service) -> None:
        self._address = address
        self._interval_s = interval_s
        self._service = service
        self._trouble = "not connected yet"
        self._looks = self._failures = self._minutes = self._rows = 0
        self._upto_s = 0
        self._seconds = 0.0
        self._doubled = 0
        self._checked_at = 0.0
        service.check("store", self._check)
        metrics.on_scrape(service.registry, self._samples)

    def run(self) -> None:
        backoff = Backoff(0.5, 15.0)
        while not self._service.stopping.is_set():
            try:
                with StoreConnection(self._address) as conn:
                    conn.check_boot_id()
                    if not conn.has("samples_1m"):
                        raise StoreNotReady("the schema has no rollups: run `telemetry-clickhouse migrate`")
                    self._trouble = ""
                    self._look_on(conn, Rollup(conn), backoff)
            except StoreError as e:
                self._failures += 1
                self._trouble = str(e)
                wait = backoff.next_s()
                self._service.log.warning("waits for the store", extra={"reason": str(e), "wait_s": round(wait, 2)})
                self._service.stopping.wait(wait)

    def _look_on(self, conn: StoreConnection, rollup: Rollup, backoff: Backoff) -> None:
        while not self._service.stopping.is_set():
            progress = rollup.look()
            backoff.reset()
            self._told(progress)
            if time.monotonic() - self._checked_at > CHECK_SECONDS:
                self._doubled = doubled_lately(conn)
                self._checked_at = time.monotonic()
                if self._doubled:
                    self._service.log.error(
                        "batches are stored twice: run `telemetry-clickhouse verify`", extra={"batches": self._doubled}
                    )
            self._service.stopping.wait(max(self._interval_s, REST_A_LOOK * progress.seconds))

    def _told(self, progress: Progress) -> None:
        self._looks += 1
        self._minutes += progress.minutes
        self._rows += progress.raw_rows
        self._seconds += progress.seconds
        self._upto_s = progress.upto_s
        if progress.minutes:
            self._service.log.info(
                "rolled up",
                extra={
                    "minutes": progress.minutes,
                    "hours": progress.hours,
                    "raw_rows": progress.raw_rows,
                    "seconds": round(progress.seconds, 3),
                },
            )

    def _check(self) -> Check:
        return Check("unhealthy", self._trouble, ready=False) if self._trouble else Check()

    def _samples(self) -> Iterator[metrics.Sample]:
        yield "store_rollup_looks_total", (), self._looks
        yield "store_rollup_failures_total", (), self._failures
        yield "store_rollup_minutes_total", (), self._minutes
        yield "store_rollup_rows_total", (), self._rows
        yield "store_rollup_busy_seconds_total", (), self._seconds
        yield "store_doubled_batches", (), self._doubled
        yield "store_rollup_lag_seconds", (), time.time() - self._upto_s if self._upto_s else 0.0


def roll(address: StoreAddress, args: argparse.Namespace) -> int:
    """Run until told to stop; with ``--once`` for one look."""
    if args.once:
        with StoreConnection(address) as conn:
            conn.check_boot_id()
            progress = Rollup(conn).look()
            sys.stdout.write(
                f"{progress.minutes} minutes and {progress.hours} hours from {progress.raw_rows:,} rows "
                f"in {progress.seconds:.2f} s\n"
            )
        return 0
    with Service.from_args("telemetry-rollup", args) as service:
        threading.Thread(target=_leave_in_time, args=(service,), daemon=True).start()
        RollupProcess(address, args.interval, service).run()
    return 0


def _leave_in_time(service: Service) -> None:
    """A statement may run for minutes, a stop has seconds. What is cut short the next look makes good (R3)."""
    service.stopping.wait()
    time.sleep(max(0.0, service.drain_seconds_left() - 1.0))
    service.log.info("left in the middle of a look")
    logging.shutdown()
    os._exit(0)
