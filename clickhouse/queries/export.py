"""Whole ranges of samples, in time order, piece by piece.

Rows are stored by GPU, so time order over a range means sorting. The range is cut into windows of few rows, each
sorted on its own: the store never holds more than one window, and a reader that streams not even that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from clickhouse.queries.inventory import Reader
from clickhouse.queries.samples import Filter

WINDOW_ROWS: Final = 1_000_000
"""What the store sorts at a time. Each window is a look at every GPU's rows, so few large ones are fast."""
SLICE_MS: Final = 60_000
"""Windows are whole minutes; a minute with more rows than a window is cut by the second."""

COLUMNS: Final = ("timestamp", "gpu_id", "metric_name", "value", "device", "hostname")

_SELECT: Final = """
SELECT s.ts AS timestamp, toString(d.gpu_id) AS gpu_id, toString(s.metric) AS metric_name, s.value AS value,
       toString(d.device) AS device, toString(d.hostname) AS hostname
FROM (SELECT * FROM samples WHERE {where}) AS s
ANY LEFT JOIN (SELECT labels, gpu_id, device, hostname FROM devices WHERE {devices}) AS d ON s.labels = d.labels
ORDER BY s.ts {order}, s.gpu {order}, s.metric {order}, s.value {order}, s.labels {order}
"""


def windows(store: Reader, wanted: Filter, *, order: str, settings: Any = None) -> Iterator[Filter]:
    """The range in time order (``asc`` or ``desc``), cut so that each part holds about WINDOW_ROWS."""
    for start, end, rows in _packed(_counts(store, wanted, SLICE_MS, settings), SLICE_MS, order):
        part = _clipped(wanted, start, end)
        if rows <= WINDOW_ROWS:
            yield part
            continue
        for start_s, end_s, _ in _packed(_counts(store, part, 1000, settings), 1000, order):
            yield _clipped(part, start_s, end_s)


def _counts(store: Reader, wanted: Filter, slice_ms: int, settings: Any) -> list[tuple[int, int]]:
    where, params = wanted.where()
    sql = (
        f"SELECT intDiv(toUnixTimestamp64Milli(ts), {slice_ms:d}) * {slice_ms:d} AS t, count() FROM samples "
        f"WHERE {where} GROUP BY t ORDER BY t"
    )
    return [(int(t), int(rows)) for t, rows in store.query(sql, params, settings)]


def _packed(counts: Sequence[tuple[int, int]], slice_ms: int, order: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, rows) of runs of slices with about WINDOW_ROWS rows; both ends included."""
    run: list[int] = []
    held = 0
    for start, rows in counts if order == "asc" else reversed(counts):
        if run and held + rows > WINDOW_ROWS:
            yield min(run), max(run) + slice_ms - 1, held
            run, held = [], 0
        run.append(start)
        held += rows
    if run:
        yield min(run), max(run) + slice_ms - 1, held


def _clipped(wanted: Filter, start: int, end: int) -> Filter:
    return wanted.between(
        start if wanted.start_ms is None else max(start, wanted.start_ms),
        end if wanted.end_ms is None else min(end, wanted.end_ms),
    )


def statement(window: Filter, *, order: str) -> tuple[str, dict[str, Any]]:
    """The SELECT of one window, without FORMAT, and its parameters."""
    where, params = window.where()
    devices = "gpu = {gpu:UInt64}" if "gpu" in params else "gpu IN {gpus:Array(UInt64)}" if "gpus" in params else "1"
    sql = _SELECT.replace("{where}", where).replace("{devices}", devices)
    return sql.replace("{order}", "ASC" if order == "asc" else "DESC"), params
