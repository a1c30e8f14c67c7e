"""Rollups, recomputed from the raw rows bucket by bucket (R3).

How it is known which minutes changed: *counts are compared*. Every bucket holds the number of raw rows that it was
made of, so a minute is as it should be exactly when its rows in ``samples`` are as many as ``samples_1m`` says. The
other way, to mark minutes durably before each ack, would cost every delivery one more synced insert and would trust
every writer ever after. Counts need nobody's cooperation: they find late rows, repairs, restores and rollups that died
half way alike, and heal whatever two rollups at the same time leave behind.

What makes comparing cheap is that only parts with blocks not looked at before matter: those that nobody wrote to are
not counted again, and a merge of known parts is known. A part tells its first and last time without being read, and a
minute that has no rollup yet needs no count. A rollup that has just started takes every part for new.

    minutes of new blocks -> those whose counts differ -> recomputed whole, all GPUs of a minute at once
    gpu_seen, xid_events  -> from the raw rows of the same minutes, *before* the counts are written that settle them
    hours of those        -> recomputed from their minutes

A minute is rolled up when it is over; later rows of it come with the next look. ``rollup_progress`` says up to where
every minute is done: questions answer the rest from raw. Days that are about to lose raw rows to their retention are
left as they are: from then on the rollup is all there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clickhouse.client import StoreConnection
from clickhouse.queries.events import LOOK_BACK_MS, XID_METRIC

MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400

SETTLE_SECONDS: Final = 2.0
"""A minute is left alone until this long after its end: most of its rows are on their way still."""

BUCKETS_A_STATEMENT: Final = 60
"""Buckets recomputed at once: bounds the memory of the GROUP BY."""

SPAN_SECONDS_MAX: Final = 600
"""A new part that spans no more is taken to hold rows of every minute in between; a longer one is asked."""

PARTS_ASKED_MAX: Final = 500
"""Names of parts that a question may carry in its URL; beyond it the whole day is asked."""

# The newest value. A maximum of numbers is three times as fast as argMax over (ts, value), and like that one it says
# which of two values of one moment is meant, whatever order they are read in.
_LAST: Final = (
    "reinterpretAsFloat64(toUInt64(max(bitOr("
    "bitShiftLeft(toUInt128(toUnixTimestamp64Milli(ts)), 64), reinterpretAsUInt64(value)))))"
)

_SETTINGS: Final = {
    "max_execution_time": 3600,
    "async_insert": 0,
    # Inserts and questions come first on a small machine.
    "max_threads": 2,
    # Rows lie by GPU and metric: groups need no hash table of all of them, and half the time.
    "optimize_aggregation_in_order": 1,
    # Beyond half the memory of a query, groups go to disk.
    "max_bytes_ratio_before_external_group_by": 0.5,
}


class Progress(NamedTuple):
    """What one look did."""

    minutes: int
    hours: int
    raw_rows: int
    """Rows that the recomputed minutes hold."""
    seconds: float
    upto_s: int
    """Every minute before this time (seconds since the epoch) is rolled up, as far as this look could see."""


class Part(NamedTuple):
    """What a part's name says: ``20261121_1_7_2`` or, after a mutation, ``20261121_1_7_2_9``."""

    first_block: int
    last_block: int
    mutation: int

    @classmethod
    def of(cls, name: str) -> Part:
        numbers = name.rsplit("_", name.count("_"))[1:]
        return cls(int(numbers[0]), int(numbers[1]), int(numbers[3]) if len(numbers) > 3 else 0)


class Active(NamedTuple):
    """An active part: its name, and the times (seconds since the epoch) of its first and last row."""

    name: str
    first_s: int
    last_s: int


class Blocks:
    """The blocks of one day that were looked at, as ranges by mutation."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._ranges: list[Part] = []
        for part in sorted(parts):
            if self._ranges and self._touches(self._ranges[-1], part):
                last = self._ranges[-1]
                self._ranges[-1] = last._replace(last_block=max(last.last_block, part.last_block))
            else:
                self._ranges.append(part)

    @staticmethod
    def _touches(before: Part, part: Part) -> bool:
        return before.mutation == part.mutation and part.first_block <= before.last_block + 1

    def __contains__(self, part: Part) -> bool:
        return any(
            known.mutation == part.mutation
            and known.first_block <= part.first_block
            and part.last_block <= known.last_block
            for known in self._ranges
        )


class Rollup:
    """Keeps rollups up to date over one connection. Not thread-safe. Two of them at the same time do no harm."""

    def __init__(
        self, conn: StoreConnection, *, retention_days: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """``retention_days``: of the raw rows; None asks the table for its TTL at each look."""
        self._conn = conn
        self._db = conn.address.database
        self._clock = clock
        self._retention_days = retention_days
        self._known: dict[int, Blocks] = {}
        self._looked_upto: dict[str, int] = {}
        """By part that reaches into a minute that is not over: up to where it was looked at."""
        self._hours_due: set[int] = set()

    def look(self) -> Progress:
        """Roll up every minute that is over and whose count differs. Raises :class:`clickhouse.errors.StoreError`."""
        started = time.perf_counter()
        now = self._clock()
        upto = int(now - SETTLE_SECONDS) // MINUTE_S * MINUTE_S
        minutes = rows = 0
        first_look = not self._known
        looked_upto = self._looked_upto
        self._looked_upto = {}
        for day, parts in sorted(self._days(now).items()):
            known = self._known.get(day)
            new = [part for part in parts if known is None or Part.of(part.name) not in known]
            if known is not None and not new:
                continue
            starts = {part.name: max(part.first_s, looked_upto.get(part.name, 0)) for part in new}
            dirty = self._dirty(day, self._minutes_of(day, new, starts, upto))
            self._hours_due.update(minute // HOUR_S * HOUR_S for minute in dirty)
            for start in range(0, len(dirty), BUCKETS_A_STATEMENT):
                rows += self._recompute(dirty[start : start + BUCKETS_A_STATEMENT])
            minutes += len(dirty)
            # Parts with rows of a minute that is not over yet stay new.
            self._looked_upto.update((part.name, upto) for part in new if part.last_s >= upto)
            self._known[day] = Blocks(Part.of(part.name) for part in parts if part.last_s < upto)
        if first_look:
            # Whoever was here before may have died between minutes and hours.
            self._hours_due.update(self._stale_hours())
        hours = self._recompute_hours(sorted(self._hours_due))
        self._hours_due.clear()
        self._conn.command(
            f"INSERT INTO {self._db}.rollup_progress SELECT 'minutes', toDateTime({upto:d}, 'UTC'), {_version(now)}"
        )
        return Progress(minutes, hours, rows, time.perf_counter() - started, upto)

    def _days(self, now: float) -> dict[int, list[Active]]:
        """Active parts by day, without the days whose raw rows are being dropped."""
        keep = self._retention_days or retention_days(self._conn, "samples")
        oldest = int(now // DAY_S) - keep + 1
        rows = self._conn.query(
            "SELECT toUInt32(toDate(partition)), "
            "groupArray((name, toUnixTimestamp(min_time), toUnixTimestamp(max_time))) "
            "FROM system.parts WHERE active AND database = {database:String} AND table = 'samples' GROUP BY partition",
            {"database": self._db},
        )
        days = {
            int(day): [
                # A server that does not tell the times of a part (both are 0): any of the day.
                Active(str(name), int(first) or day * DAY_S, int(last) or (day + 1) * DAY_S - 1)
                for name, first, last in parts
            ]
            for day, parts in rows
            if int(day) >= oldest
        }
        self._known = {day: known for day, known in self._known.items() if day in days}
        return days

    def _minutes_of(self, day: int, parts: Sequence[Active], starts: Mapping[str, int], upto: int) -> list[int]:
        """Minutes before ``upto`` that these parts may have rows in, each from its start on."""
        minutes: set[int] = set()
        long: list[Active] = []
        for part in parts:
            start = starts[part.name] // MINUTE_S * MINUTE_S
            if part.last_s - start <= SPAN_SECONDS_MAX:
                minutes.update(range(start, min(part.last_s + 1, upto), MINUTE_S))
            elif part.first_s < upto:
                long.append(part)
        if long:
            within = _range(day * DAY_S, min(upto, (day + 1) * DAY_S))
            found = self._minutes_by_part(within, long) if len(long) <= PARTS_ASKED_MAX else {}
            if len(found) < len(long):
                # A merge took one of them between two questions: its rows are in a part that was not asked.
                found = self._minutes_by_part(within)
            minutes.update(*found.values())
        return sorted(minutes)

    def _minutes_by_part(self, within: str, parts: Sequence[Active] | None = None) -> dict[str, list[int]]:
        """Minutes that these parts (None: all) have rows in, by part; a part that is gone is not in it."""
        only = "" if parts is None else "AND _part IN {parts:Array(String)}"
        rows = self._conn.query(
            "SELECT _part, groupUniqArray(toUInt32(toUnixTimestamp(toStartOfMinute(ts)))) "
            f"FROM {self._db}.samples WHERE {within} {only} GROUP BY _part",
            None if parts is None else {"parts": [part.name for part in parts]},
            _SETTINGS,
        )
        return {str(name): [int(minute) for minute in minutes] for name, minutes in rows}

    def _dirty(self, day: int, minutes: Sequence[int]) -> list[int]:
        """Those whose number of raw rows is not what their rollup was made of."""
        if not minutes:
            return []
        rolled = self._conn.query(
            f"SELECT toUnixTimestamp(bucket) AS minute, sum(count) FROM {self._db}.samples_1m FINAL "
            f"WHERE toDate(bucket) = toDate({day:d}) AND minute IN {{minutes:Array(UInt32)}} GROUP BY minute",
            {"minutes": list(minutes)},
            _SETTINGS,
        )
        have = {int(minute): int(count) for minute, count in rolled}
        dirty = [minute for minute in minutes if minute not in have]
        if have:
            among, params = _among(sorted(have))
            raw = self._conn.query(
                f"SELECT toUnixTimestamp(toStartOfMinute(ts)) AS minute, count() FROM {self._db}.samples "
                f"WHERE {among} GROUP BY minute",
                params,
                _SETTINGS,
            )
            dirty += [int(minute) for minute, count in raw if have[int(minute)] != int(count)]
        return sorted(dirty)

    def _recompute(self, minutes: Sequence[int]) -> int:
        """Recompute these minutes, of one day, whole. Returns the raw rows that they hold."""
        among, params = _among(minutes)
        source = f"FROM {self._db}.samples WHERE {among}"
        version = _version(self._clock())
        self._conn.command(
            f"INSERT INTO {self._db}.gpu_seen (gpu, first, last) SELECT gpu, min(ts), max(ts) {source} GROUP BY gpu",
            params,
            _SETTINGS,
        )
        self._recompute_xids(minutes, version)
        # Last, because equal counts say that all of it is done.
        self._conn.command(
            f"INSERT INTO {self._db}.samples_1m (gpu, metric, bucket, low, high, total, count, last, version) "
            "SELECT gpu, metric, toStartOfMinute(ts) AS bucket, min(value), max(value), sum(value), count(), "
            f"{_LAST}, {version} {source} GROUP BY gpu, metric, bucket",
            params,
            _SETTINGS,
        )
        counted = self._conn.scalar(
            f"SELECT sum(count) FROM {self._db}.samples_1m WHERE version = {version} "
            f"AND toDate(bucket) = toDate({minutes[0] // DAY_S:d}) "
            "AND toUnixTimestamp(bucket) IN {minutes:Array(UInt32)}",
            {"minutes": list(minutes)},
        )
        return int(counted)

    def _recompute_xids(self, minutes: Sequence[int], version: int) -> None:
        """Judge every XID sample of these minutes, and of the ones after them: late rows move events about."""
        first, last = minutes[0] - LOOK_BACK_MS // 1000, minutes[-1] + 2 * MINUTE_S
        judged = sorted({*minutes, *(minute + MINUTE_S for minute in minutes)})
        known = (
            f"SELECT gpu, ts FROM {self._db}.xid_events WHERE is_event "
            f"AND ts >= toDateTime({first:d}, 'UTC') AND ts < toDateTime({last:d}, 'UTC')"
        )
        self._conn.command(
            f"INSERT INTO {self._db}.xid_events (gpu, ts, code, before, labels, is_event, version) "
            "SELECT gpu, ts, toUInt32(value), toUInt32(before), labels, value > 0 AND value != before AS is_event, "
            f"{version} FROM (SELECT gpu, ts, value, labels, lagInFrame(value, 1, 0) OVER "
            "(PARTITION BY gpu ORDER BY ts, value ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before "
            f"FROM {self._db}.samples WHERE metric = {{metric:String}} AND value >= 0 AND {_range(first, last)}) "
            "WHERE toUnixTimestamp(toStartOfMinute(ts)) IN {judged:Array(UInt32)} "
            # What is no event is written only where it takes back one that was.
            f"AND (is_event OR (gpu, ts) IN ({known}))",
            {"metric": XID_METRIC, "judged": judged},
            _SETTINGS,
        )

    def _stale_hours(self) -> list[int]:
        """Hours that are not made of all their minutes."""
        rows = self._conn.query(
            "SELECT toUnixTimestamp(hour) FROM ("
            f"SELECT toStartOfHour(bucket) AS hour, sum(count) AS n FROM {self._db}.samples_1m FINAL GROUP BY hour"
            f") AS minutes LEFT JOIN (SELECT bucket AS hour, sum(count) AS n FROM {self._db}.samples_1h FINAL "
            "GROUP BY bucket) AS hours USING (hour) WHERE minutes.n > hours.n",
            None,
            _SETTINGS,
        )
        return [int(row[0]) for row in rows]

    def _recompute_hours(self, hours: Sequence[int]) -> int:
        """Recompute these hours from their minutes, which are equal to raw by now."""
        for start in range(0, len(hours), BUCKETS_A_STATEMENT):
            chosen = list(hours[start : start + BUCKETS_A_STATEMENT])
            self._conn.command(
                f"INSERT INTO {self._db}.samples_1h (gpu, metric, bucket, low, high, total, count, last, version) "
                "SELECT gpu, metric, toStartOfHour(minutes.bucket) AS hour, min(minutes.low), max(minutes.high), "
                "sum(minutes.total), sum(minutes.count), argMax(minutes.last, minutes.bucket), "
                f"{_version(self._clock())} FROM {self._db}.samples_1m AS minutes FINAL "
                f"WHERE minutes.bucket >= toDateTime({chosen[0]:d}, 'UTC') "
                f"AND minutes.bucket < toDateTime({chosen[-1] + HOUR_S:d}, 'UTC') "
                "AND toUnixTimestamp(toStartOfHour(minutes.bucket)) IN {hours:Array(UInt32)} "
                "GROUP BY gpu, metric, hour",
                {"hours": chosen},
                _SETTINGS,
            )
        return len(hours)


def _range(start_s: int, end_s: int) -> str:
    """Condition on ``ts``: the partition and each part's own range are chosen by it."""
    return f"ts >= toDateTime64({start_s:d}, 3, 'UTC') AND ts < toDateTime64({end_s:d}, 3, 'UTC')"


def _among(minutes: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Condition that ``ts`` lies in one of these ascending minutes, and its parameters."""
    first, end = minutes[0], minutes[-1] + MINUTE_S
    if end - first == len(minutes) * MINUTE_S:
        return _range(first, end), {}
    within = "toUnixTimestamp(toStartOfMinute(ts)) IN {minutes:Array(UInt32)}"
    return f"{_range(first, end)} AND {within}", {"minutes": list(minutes)}


def _version(now: float) -> int:
    """Later recomputations win. Where two at the same time take each other's place wrongly, their counts differ from
    raw and the next look sees it."""
    return int(now * 1000)


def retention_days(conn: StoreConnection, table: str) -> int:
    """Days that a table keeps its rows, by its TTL; a very long time without one."""
    engine = str(
        conn.scalar(
            "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            {"database": conn.address.database, "table": table},
        )
        or ""
    )
    _, found, rest = engine.partition("toIntervalDay(")
    return int(rest.partition(")")[0]) if found else 36_500
