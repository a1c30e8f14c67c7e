"""Samples as they were stored, page by page, in time order.

A page by number skips rows and costs what it skips. A page by cursor begins where the last one ended: its key is
(ts, gpu, metric, value, labels) of the last row, which is all that is told of it, and how many rows equal to that key
were given already (the same row may be stored twice on purpose: a file played twice with its own timestamps).

One GPU's rows are stored by metric and then time, so "the next 100 in time order" would read everything up to the
end of the range. It is asked instead in a window that begins at the cursor and doubles until it holds a page:
the cost is that of the page, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from clickhouse.queries.inventory import ArrowReader, CountingReader, Reader

if TYPE_CHECKING:
    import pyarrow

WINDOW_MS_FIRST = 60_000
WINDOW_GROWTH = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(ms: int) -> str:
    """Milliseconds since the epoch, as a parameter of type ``DateTime64(3, 'UTC')`` reads them."""
    return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


class Sample(NamedTuple):
    """One row; ``ts_ms`` in milliseconds since the epoch."""

    ts_ms: int
    gpu: int
    metric: str
    value: float
    labels: int


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: its last row, and how many rows like it were given."""

    key: Sample
    given: int


@dataclass(frozen=True)
class Filter:
    """Which samples; empty = all. Times in milliseconds, both ends included."""

    gpus: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    start_ms: int | None = None
    end_ms: int | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """The condition and its bound parameters."""
        parts, params = [], {}
        if len(self.gpus) == 1:
            parts.append("gpu = {gpu:UInt64}")
            params["gpu"] = self.gpus[0]
        elif self.gpus:
            parts.append("gpu IN {gpus:Array(UInt64)}")
            params["gpus"] = list(self.gpus)
        if len(self.metrics) == 1:
            parts.append("metric = {metric:String}")
            params["metric"] = self.metrics[0]
        elif self.metrics:
            parts.append("metric IN {metrics:Array(String)}")
            params["metrics"] = list(self.metrics)
        if self.start_ms is not None:
            parts.append("ts >= {start:DateTime64(3, 'UTC')}")
            params["start"] = instant(self.start_ms)
        if self.end_ms is not None:
            parts.append("ts <= {end:DateTime64(3, 'UTC')}")
            params["end"] = instant(self.end_ms)
        return " AND ".join(parts) or "1", params

    def between(self, start_ms: int, end_ms: int) -> Filter:
        """The same samples within this range."""
        return Filter(self.gpus, self.metrics, start_ms, end_ms)


_COLUMNS = "toUnixTimestamp64Milli(ts) AS t, gpu, metric, value, labels"
_ORDER = {
    "asc": "ts, gpu, metric, value, labels",
    "desc": "ts DESC, gpu DESC, metric DESC, value DESC, labels DESC",
}
_KEY = "(t, gpu, toString(metric), value, labels)"
_KEY_PARAMS = "({k_ts:Int64}, {k_gpu:UInt64}, {k_metric:String}, {k_value:Float64}, {k_labels:UInt64})"


def page(
    store: CountingReader, wanted: Filter, *, order: str, limit: int, offset: int = 0, settings: Any = None
) -> tuple[list[Sample], int]:
    """``limit`` samples after ``offset`` of them, in time order (``asc`` or ``desc``), and how many there are in all.

    One look at the rows for both: counting apart takes half as long again.
    """
    where, params = wanted.where()
    # PREWHERE: the store need not find out by itself which conditions to look at first, a twentieth of its time.
    sql = f"SELECT {_COLUMNS} FROM samples PREWHERE {where} ORDER BY {_ORDER[order]} LIMIT {limit:d} OFFSET {offset:d}"
    rows, total = store.query_counted(sql, params, settings)
    return _samples(rows), total


def page_after(
    store: Reader, wanted: Filter, cursor: Cursor, *, order: str, limit: int, settings: Any = None
) -> list[Sample]:
    """``limit`` samples after the cursor, in time order."""
    found = bounds_hint(store, wanted, cursor, order, settings)
    if found is None:
        return []
    edge, last = found
    rows: list[Sample] = []
    span = WINDOW_MS_FIRST
    given = cursor
    while True:
        # Windows touch without overlapping: each begins a millisecond after the one before.
        if order == "asc":
            window = wanted.between(edge, min(last, edge + span))
            edge, done = edge + span + 1, edge + span >= last
        else:
            window = wanted.between(max(last, edge - span), edge)
            edge, done = edge - span - 1, edge - span <= last
        rows += _window(store, window, given, order, limit - len(rows), settings)
        if done or len(rows) >= limit:
            return rows
        span *= WINDOW_GROWTH


def bounds_hint(store: Reader, wanted: Filter, cursor: Cursor, order: str, settings: Any) -> tuple[int, int] | None:
    """(time of the cursor, the far end of the range): where windows begin and end."""
    far = wanted.end_ms if order == "asc" else wanted.start_ms
    if far is None:
        # Partitions know their own bounds: this reads no column.
        sql = "SELECT toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)), count() FROM samples"
        first, last, rows = store.query(sql, None, settings)[0]
        if not rows:
            return None
        far = int(last) if order == "asc" else int(first)
    at = cursor.key.ts_ms
    return (at, far) if (at <= far if order == "asc" else at >= far) else None


def _window(store: Reader, window: Filter, cursor: Cursor, order: str, limit: int, settings: Any) -> list[Sample]:
    where, params = window.where()
    ts, gpu, metric, value, labels = cursor.key
    params |= {"k_ts": ts, "k_gpu": gpu, "k_metric": metric, "k_value": value, "k_labels": labels}
    sign = ">=" if order == "asc" else "<="
    sql = (
        f"SELECT {_COLUMNS} FROM samples WHERE {where} AND {_KEY} {sign} {_KEY_PARAMS} "
        f"ORDER BY {_ORDER[order]} LIMIT {limit + cursor.given:d}"
    )
    found = _samples(store.query(sql, params, settings))
    given = 0
    while given < cursor.given and given < len(found) and found[given] == cursor.key:
        given += 1
    return found[given : given + limit]


def cursor_after(rows: Sequence[Sample], before: Cursor | None) -> Cursor:
    """The cursor behind these rows (at least one), which came after ``before``."""
    key = rows[-1]
    given = 0
    for row in reversed(rows):
        if row != key:
            break
        given += 1
    if given == len(rows) and before is not None and before.key == key:
        given += before.given
    return Cursor(key, given)


def _samples(rows: Iterator[Any] | list[tuple[Any, ...]]) -> list[Sample]:
    return [Sample(int(t), int(gpu), str(metric), float(value), int(labels)) for t, gpu, metric, value, labels in rows]


def latest(
    store: Reader, gpus: Sequence[int], *, since_ms: int, metrics: Sequence[str] = (), settings: Any = None
) -> list[tuple[int, str, int, float]]:
    """(gpu, metric, time in ms, value) of the newest sample of each metric of each GPU; ``gpus`` empty = all."""
    where, params = Filter(tuple(gpus), tuple(metrics), since_ms).where()
    sql = (
        "SELECT gpu, metric, toUnixTimestamp64Milli(max(ts)), argMax(value, ts) FROM samples "
        f"WHERE {where} GROUP BY gpu, metric ORDER BY gpu, metric"
    )
    return [(int(g), str(m), int(t), float(v)) for g, m, t, v in store.query(sql, params, settings)]


def version(store: Reader, settings: Any = None) -> tuple[int, int]:
    """(rows, newest time in ms): changes with every insert, and is answered from the books of the table's parts."""
    sql = "SELECT count(), toUnixTimestamp64Milli(max(ts)) FROM samples"
    rows, newest = store.query(sql, None, settings)[0]
    return int(rows), int(newest)


def latest_of_all(store: ArrowReader, *, since_ms: int, settings: Any = None) -> pyarrow.Table:
    """As :func:`latest`, of every GPU and metric: a table with the columns gpu, metric, t (ms) and value."""
    where, params = Filter(start_ms=since_ms).where()
    sql = (
        "SELECT gpu, toString(metric) AS metric, toUnixTimestamp64Milli(max(ts)) AS t, argMax(value, ts) AS value "
        f"FROM samples WHERE {where} GROUP BY gpu, metric"
    )
    # Rows lie by GPU and metric: taken in that order, no hash table is needed, which halves the time.
    return store.query_arrow(
        sql,
        params,
        {**(settings or {}), "output_format_arrow_string_as_string": 1, "optimize_aggregation_in_order": 1},
    )
