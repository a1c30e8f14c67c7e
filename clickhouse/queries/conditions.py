"""What alert rules ask of the samples: one row a GPU, over the last while."""

from __future__ import annotations

from typing import Any, NamedTuple

from clickhouse.queries.inventory import Reader

_SINCE = "metric = {metric:String} AND ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"


class Window(NamedTuple):
    """A metric of one GPU over a window; times in milliseconds."""

    gpu: int
    samples: int
    low: float
    high: float
    mean: float
    last: float
    first_ms: int
    last_ms: int


def windows(store: Reader, metric: str, *, since_ms: int, settings: Any = None) -> list[Window]:
    """The metric's window of every GPU that has samples in it."""
    sql = (
        "SELECT gpu, count(), min(value), max(value), avg(value), argMax(value, ts), "
        f"toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)) FROM samples WHERE {_SINCE} GROUP BY gpu"
    )
    rows = store.query(sql, {"metric": metric, "since": since_ms}, settings)
    return [Window(int(r[0]), int(r[1]), *(float(x) for x in r[2:6]), int(r[6]), int(r[7])) for r in rows]


class Masked(NamedTuple):
    """How many samples of one GPU had a bit of the mask, out of how many."""

    gpu: int
    samples: int
    hits: int
    last: int
    first_ms: int
    last_ms: int


def masked(store: Reader, metric: str, mask: int, *, since_ms: int, settings: Any = None) -> list[Masked]:
    """For every GPU that had a bit of ``mask`` at least once."""
    sql = (
        "SELECT gpu, count(), countIf(bitAnd(toUInt64(value), {mask:UInt64}) != 0) AS hits, "
        "toUInt64(argMax(value, ts)), toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)) "
        f"FROM samples WHERE {_SINCE} AND value >= 0 GROUP BY gpu HAVING hits > 0"
    )
    rows = store.query(sql, {"metric": metric, "since": since_ms, "mask": mask}, settings)
    return [Masked(*(int(x) for x in row)) for row in rows]


class Growth(NamedTuple):
    """How much a counter of one GPU grew; a fall is a reset, after which it began again at 0."""

    gpu: int
    grown: float
    last: float
    first_ms: int
    last_ms: int


def growths(store: Reader, metric: str, *, since_ms: int, settings: Any = None) -> list[Growth]:
    """For every GPU whose counter grew at all."""
    sql = (
        "SELECT gpu, sum(if(up < 0, value, up)) AS grown, argMax(value, ts), toUnixTimestamp64Milli(min(ts)), "
        "toUnixTimestamp64Milli(max(ts)) FROM (SELECT gpu, ts, value, value - lagInFrame(value, 1, value) OVER "
        "(PARTITION BY gpu ORDER BY ts ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS up FROM samples "
        f"WHERE {_SINCE}) GROUP BY gpu HAVING grown > 0"
    )
    rows = store.query(sql, {"metric": metric, "since": since_ms}, settings)
    return [Growth(int(g), float(grown), float(last), int(a), int(b)) for g, grown, last, a, b in rows]


def metrics_seen(store: Reader, *, since_ms: int, settings: Any = None) -> set[str]:
    """Names of the metrics that have samples since then."""
    sql = "SELECT DISTINCT metric FROM samples WHERE ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
    return {str(row[0]) for row in store.query(sql, {"since": since_ms}, settings)}
