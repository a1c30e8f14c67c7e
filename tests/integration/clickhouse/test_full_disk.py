"""A disk that runs full under the embedded server: what was answered is there after the next start, whatever else."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse.client import StoreConnection
from clickhouse.errors import StoreError, StoreRefused
from clickhouse.insert import insert_rejects, insert_samples
from tests.chaos.disk import SmallDisk
from tests.helpers.store import Store, sample_columns
from tests.helpers.waiting import eventually
from tests.integration.clickhouse.rejects import reject_columns


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[Store, SmallDisk]]:
    """A store that was never started, and its disk."""
    disk = SmallDisk(tmp_path / "data", 200)
    if not disk.mounted:
        pytest.skip("mounting a small disk needs more rights")
    store = Store(tmp_path)
    try:
        yield store, disk
    finally:
        if store.process is not None:
            store.process.kill()
        disk.remove()


@pytest.fixture
def small_disk(idle: tuple[Store, SmallDisk]) -> tuple[Store, SmallDisk]:
    store, disk = idle
    return store.start(), disk


class Writers:
    """Two threads that insert small blocks into both tables, and remember what was answered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stopping = threading.Event()
        self._numbers = itertools.count(1)
        self.stored: dict[str, dict[int, int]] = {"samples": {}, "rejects": {}}
        self.refused = 0
        self.codes: set[int] = set()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(2)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _write(self) -> None:
        with self._store.connect() as conn:
            while not self._stopping.is_set():
                number = next(self._numbers)
                self._insert(conn, number, rows=5000 if number % 3 else 50)

    def _insert(self, conn: StoreConnection, number: int, rows: int) -> None:
        try:
            columns = sample_columns(rows, session=7, first_seq=number, batch_rows=rows)
            insert_samples(conn, columns, token=f"s/{number}")
            self.stored["samples"][number] = rows
            insert_rejects(conn, reject_columns(rows, session=7, seq=number), token=f"r/{number}")
            self.stored["rejects"][number] = rows
        except StoreRefused as e:
            self.codes.add(e.code)
            self.refused += 1
            time.sleep(0.02)


def missing(conn: StoreConnection, stored: dict[str, dict[int, int]]) -> list[tuple[str, int]]:
    found = {
        table: dict(conn.query(f"SELECT _seq, count() FROM telemetry.{table} WHERE _session = 7 GROUP BY _seq"))
        for table in stored
    }
    return [(table, n) for table in stored for n, rows in stored[table].items() if found[table].get(n) != rows]


@pytest.mark.timeout(180)
def test_r16_what_was_answered_while_the_disk_ran_full_is_there_after_a_kill(small_disk: tuple[Store, SmallDisk]):
    """Without a guard the engine loses an insert in some ten fillings, and nearly each leaves a merge unreadable."""
    store, disk = small_disk
    with Writers(store) as writers:
        for _ in range(5):
            before = writers.refused
            disk.fill()
            eventually(lambda: writers.refused > before, 30, "an insert was refused")  # noqa: B023
            time.sleep(0.5)
            disk.empty()
            done = sum(map(len, writers.stored.values()))
            eventually(lambda: sum(map(len, writers.stored.values())) > done, 30, "inserts go on")  # noqa: B023
    assert writers.codes == {243}
    with store.connect() as conn:
        eventually(lambda: missing(conn, writers.stored) == [], 30, "all of it can be read while the server runs")
    store.restart(kill=True)
    with store.connect() as conn:
        assert missing(conn, writers.stored) == []


@pytest.mark.timeout(120)
def test_a_nearly_full_disk_is_told_and_goes_away(small_disk: tuple[Store, SmallDisk]):
    store, disk = small_disk
    with store.connect() as conn:
        disk.fill()
        with pytest.raises(StoreError) as caught:
            insert_samples(conn, sample_columns(10), token="full")
        assert caught.value.code == 243
        assert conn.scalar("SELECT count() FROM telemetry.samples") == 0
        disk.empty()
        insert_samples(conn, sample_columns(10), token="full")
        assert conn.scalar("SELECT count() FROM telemetry.samples") == 10


@pytest.mark.timeout(120)
def test_a_start_on_a_nearly_full_disk_waits_with_its_schema_instead_of_ending(idle: tuple[Store, SmallDisk]):
    """The guard refuses the first insert of all, the migration's own; whoever supervises would restart it for ever."""
    store, disk = idle
    disk.fill(but=32 << 20)
    process = store.launch()
    process.wait_for_line("the schema waits for space on the disk", 60)
    disk.empty()
    process.wait_ready(60)
    with store.connect() as conn:
        insert_samples(conn, sample_columns(10), token="space")
        assert conn.scalar("SELECT count() FROM telemetry.samples") == 10
