"""Is every batch stored once? (R19)

    doubled   every row of a batch is there k > 1 times: it was inserted k times. Repaired by keeping one of each
    missing   a seq between the first and the last of its session has neither rows nor rejects: lost, or dead-lettered
    short     fewer or more rows than the batch had, where those counts are known (``--expect``)
    unrolled  a finished minute's rollup was made of another number of rows than raw has. Repaired by a rollup

Rows are grouped by address in slices, so that memory is bounded however many there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from clickhouse.client import StoreConnection
from clickhouse.rollup import DAY_S, MINUTE_S, Rollup, retention_days
from clickhouse.schema import SAMPLE_COLUMNS

SLICE_ROWS: Final = 5_000_000
"""Rows grouped at once; some 500 MB at worst."""
REPAIR_ADDRESSES: Final = 500
SHOWN_MAX: Final = 1000
"""Findings of a kind that are listed; all are counted."""

_SETTINGS: Final = {"max_execution_time": 3600, "async_insert": 0}
_COLUMNS: Final = ", ".join(SAMPLE_COLUMNS)


class Doubled(NamedTuple):
    """A batch that is stored ``times`` times on a day (days since the epoch); ``rows`` are those of one copy."""

    day: int
    session: int
    seq: int
    times: int
    rows: int


class Missing(NamedTuple):
    """Seqs of a session without a row: ``first`` to ``last``."""

    session: int
    first: int
    last: int


class Short(NamedTuple):
    """A batch with another number of rows, rejects included, than it had."""

    session: int
    seq: int
    expected: int
    stored: int


class Unrolled(NamedTuple):
    """A day (days since the epoch) whose finished minutes hold other rows than their rollup was made of."""

    day: int
    raw_rows: int
    rolled_rows: int


class Report(NamedTuple):
    """What was found. ``rows`` were looked at."""

    rows: int
    doubled: list[Doubled]
    missing: list[Missing]
    short: list[Short]
    unrolled: list[Unrolled]

    @property
    def clean(self) -> bool:
        return not (self.doubled or self.missing or self.short or self.unrolled)


class BadExpectation(ValueError):
    """The file of expected counts cannot be read; the message names file and line."""


def verify(conn: StoreConnection, expected: Mapping[tuple[int, int], int] | None = None) -> Report:
    """Look at everything that is stored. Raises :class:`clickhouse.errors.StoreError`."""
    database = conn.address.database
    days = conn.query(
        f"SELECT toUInt32(toDate(ts)) AS day, count() FROM {database}.samples GROUP BY day ORDER BY day",
        None,
        _SETTINGS,
    )
    doubled = [found for day, rows in days for found in doubled_on(conn, int(day), int(rows))]
    return Report(
        rows=sum(int(rows) for _, rows in days),
        doubled=doubled,
        missing=list(missing(conn)),
        short=list(_short(conn, expected)) if expected is not None else [],
        unrolled=list(_unrolled(conn)),
    )


def doubled_on(conn: StoreConnection, day: int, rows: int, where: str = "1") -> list[Doubled]:
    """Batches of which every row is stored several times on one day. ``rows``: about how many the day has."""
    slices = rows // SLICE_ROWS + 1
    found: list[Doubled] = []
    for number in range(slices):
        only = f"AND cityHash64(_session, _seq) % {slices:d} = {number:d}" if slices > 1 else ""
        found += [
            Doubled(day, *(int(value) for value in row))
            for row in conn.query(
                "SELECT _session, _seq, min(times), count() FROM ("
                "SELECT _session, _seq, count() AS times "
                f"FROM {conn.address.database}.samples WHERE toDate(ts) = toDate({day:d}) {only} AND {where} "
                "GROUP BY _session, _seq, gpu, metric, ts, value, labels) "
                "GROUP BY _session, _seq HAVING min(times) > 1 ORDER BY _session, _seq",
                None,
                _SETTINGS,
            )
        ]
    return found


def missing(conn: StoreConnection) -> Iterator[Missing]:
    """Gaps in each session's seqs. Rows that retention has dropped are no gap: they are before the first."""
    database = conn.address.database
    rows = conn.query(
        "SELECT _session, before + 1, _seq - 1 FROM (SELECT _session, _seq, "
        "lagInFrame(_seq, 1, _seq) OVER (PARTITION BY _session ORDER BY _seq "
        "ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before "
        f"FROM (SELECT _session, _seq FROM {database}.samples GROUP BY _session, _seq "
        f"UNION DISTINCT SELECT _session, _seq FROM {database}.rejects GROUP BY _session, _seq)) "
        "WHERE _seq > before + 1 ORDER BY _session, _seq",
        None,
        _SETTINGS,
    )
    for session, first, last in rows:
        yield Missing(int(session), int(first), int(last))


def _short(conn: StoreConnection, expected: Mapping[tuple[int, int], int]) -> Iterator[Short]:
    database = conn.address.database
    stored = {
        (int(session), int(seq)): int(rows)
        for session, seq, rows in conn.query(
            f"SELECT _session, _seq, sum(n) FROM (SELECT _session, _seq, count() AS n FROM {database}.samples "
            f"GROUP BY _session, _seq UNION ALL SELECT _session, _seq, count() AS n FROM {database}.rejects "
            "GROUP BY _session, _seq) GROUP BY _session, _seq",
            None,
            _SETTINGS,
        )
    }
    for (session, seq), rows in sorted(expected.items()):
        if stored.get((session, seq), 0) != rows:
            yield Short(session, seq, rows, stored.get((session, seq), 0))


def _unrolled(conn: StoreConnection) -> Iterator[Unrolled]:
    """Days of which finished minutes differ, as far as the rollup has said that it came."""
    if not conn.has("rollup_progress"):
        return
    database = conn.address.database
    upto = int(conn.scalar(f"SELECT toUnixTimestamp(max(upto)) FROM {database}.rollup_progress") or 0)
    rows = conn.query(
        "SELECT day, sum(raw), sum(rolled) FROM ("
        f"SELECT toUInt32(toDate(ts)) AS day, count() AS raw, 0 AS rolled FROM {database}.samples "
        f"WHERE ts < toDateTime({upto:d}, 'UTC') GROUP BY day UNION ALL "
        f"SELECT toUInt32(toDate(bucket)) AS day, 0 AS raw, sum(count) AS rolled FROM {database}.samples_1m FINAL "
        f"WHERE bucket < toDateTime({upto:d}, 'UTC') GROUP BY day) GROUP BY day ORDER BY day",
        None,
        _SETTINGS,
    )
    oldest = int(time.time() // DAY_S) - retention_days(conn, "samples") + 1
    for day, raw, rolled in rows:
        if int(raw) != int(rolled) and int(day) >= oldest:
            yield Unrolled(int(day), int(raw), int(rolled))


def repair(conn: StoreConnection, report: Report) -> int:
    """Keep one copy of each doubled batch and bring the rollups up to date. Returns the rows removed.

    No moment exists at which a batch is in neither of two tables: one copy is staged in ``samples_repair``, then every
    copy is deleted, then the staged one comes back. A repair that died is finished by the next. Run it when the
    batches it is about are not being redelivered: a collector that looks between delete and return would insert them
    again.
    """
    database = conn.address.database
    # Its own engine clause: what is staged must not be dropped by a TTL.
    conn.command(
        f"CREATE TABLE IF NOT EXISTS {database}.samples_repair AS {database}.samples ENGINE = MergeTree "
        "PARTITION BY toDate(ts) ORDER BY (gpu, metric, ts) SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )
    _bring_back(conn)
    removed = 0
    by_day: dict[int, list[Doubled]] = {}
    for found in report.doubled:
        by_day.setdefault(found.day, []).append(found)
    for day, of_day in by_day.items():
        for start in range(0, len(of_day), REPAIR_ADDRESSES):
            chosen = of_day[start : start + REPAIR_ADDRESSES]
            _stage(conn, day, chosen)
            _bring_back(conn)
            removed += sum(found.rows * (found.times - 1) for found in chosen)
    conn.command(f"DROP TABLE {database}.samples_repair SYNC")
    Rollup(conn).look()
    return removed


def _stage(conn: StoreConnection, day: int, chosen: Iterable[Doubled]) -> None:
    chosen = list(chosen)
    conn.command(
        f"INSERT INTO {conn.address.database}.samples_repair ({_COLUMNS}) SELECT {_COLUMNS} FROM ("
        f"SELECT {_COLUMNS}, intDiv(count(), transform((_session, _seq), "
        "arrayZip({sessions:Array(UInt64)}, {seqs:Array(UInt64)}), {times:Array(UInt64)}, 1)) AS copies "
        f"FROM {conn.address.database}.samples WHERE toDate(ts) = toDate({day:d}) AND (_session, _seq) IN "
        "arrayZip({sessions:Array(UInt64)}, {seqs:Array(UInt64)}) "
        f"GROUP BY {_COLUMNS}) ARRAY JOIN range(copies)",
        {
            "sessions": [found.session for found in chosen],
            "seqs": [found.seq for found in chosen],
            "times": [found.times for found in chosen],
        },
        _SETTINGS,
    )


def _bring_back(conn: StoreConnection) -> None:
    """What is staged replaces every copy; doing it twice ends the same."""
    database = conn.address.database
    rows = conn.query(
        f"SELECT toUInt32(toDate(ts)) AS day, _session, _seq FROM {database}.samples_repair GROUP BY ALL ORDER BY ALL"
    )
    if not rows:
        return
    for day in sorted({int(row[0]) for row in rows}):
        addresses = [(int(session), int(seq)) for of, session, seq in rows if int(of) == day]
        listed = ", ".join(f"({session:d}, {seq:d})" for session, seq in addresses)
        conn.command(
            f"ALTER TABLE {database}.samples DELETE WHERE toDate(ts) = toDate({day:d}) "
            f"AND (_session, _seq) IN ({listed})",
            settings={"mutations_sync": 2, **_SETTINGS},
        )
        conn.command(
            f"INSERT INTO {database}.samples ({_COLUMNS}) SELECT {_COLUMNS} FROM {database}.samples_repair "
            f"WHERE toDate(ts) = toDate({day:d})",
            # The blocks that this brings back are in the table's books as inserted already.
            settings={"insert_deduplicate": 0, **_SETTINGS},
        )
    conn.command(f"TRUNCATE TABLE {database}.samples_repair")


def read_expected(path: Path) -> dict[tuple[int, int], int]:
    """Rows by (session, seq) from NDJSON lines ``{"session": ..., "seq": ..., "rows": ...}``."""
    expected: dict[tuple[int, int], int] = {}
    try:
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    expected[int(entry["session"]), int(entry["seq"])] = int(entry["rows"])
                except (ValueError, KeyError, TypeError):
                    shown = line.strip()[:80]
                    raise BadExpectation(f"{path}:{number}: no session, seq and rows in {shown!r}") from None
    except OSError as e:
        raise BadExpectation(f"{path}: {e.strerror}") from None
    return expected


def doubled_lately(conn: StoreConnection, seconds: int = 300) -> int:
    """Batches stored several times among the rows of the last minutes: cheap enough for a gauge."""
    now = int(time.time())
    start = now - seconds
    where = f"ts >= toDateTime64({start // MINUTE_S * MINUTE_S:d}, 3, 'UTC')"
    days = {start // DAY_S, now // DAY_S}
    return sum(len(doubled_on(conn, day, 0, where)) for day in days)
