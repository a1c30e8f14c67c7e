"""Events: XIDs read out of their gauge, and refused rows.

The XID gauge keeps its last code for ever, so an event is a sample whose code differs from the one before it. A look
before the range tells what was there already; a repeat of the same code cannot be seen in such a gauge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from clickhouse.queries.inventory import Reader

XID_METRIC: Final = "DCGM_FI_DEV_XID_ERRORS"
LOOK_BACK_MS: Final = 600_000


class Xid(NamedTuple):
    """A new XID code of a GPU; ``ts_ms`` is the first sample that has it."""

    ts_ms: int
    gpu: int
    labels: int
    code: int


def xids(
    store: Reader,
    *,
    start_ms: int,
    end_ms: int,
    gpus: Sequence[int] = (),
    limit: int,
    offset: int = 0,
    settings: Any = None,
) -> list[Xid]:
    """New XIDs within the range (both ends included), newest first."""
    params = {"metric": XID_METRIC, "back": start_ms - LOOK_BACK_MS, "start": start_ms, "end": end_ms}
    if gpus:
        params["gpus"] = list(gpus)
    only = "AND gpu IN {gpus:Array(UInt64)}" if gpus else ""
    # Older events are kept by the rollup, long after their raw rows are gone; what it has not seen comes from raw.
    upto = "(SELECT max(upto) FROM rollup_progress WHERE name = 'minutes')"
    sql = (
        "SELECT t, gpu, labels, toInt64(code) FROM (SELECT toUnixTimestamp64Milli(ts) AS t, gpu, labels, code "
        "FROM xid_events FINAL WHERE is_event AND ts >= fromUnixTimestamp64Milli({start:Int64}, 'UTC') "
        f"AND ts <= fromUnixTimestamp64Milli({{end:Int64}}, 'UTC') AND ts < {upto} {only} UNION ALL "
        "SELECT t, gpu, labels, toUInt32(value) AS code FROM ("
        "SELECT toUnixTimestamp64Milli(ts) AS t, gpu, labels, value, lagInFrame(value, 1, 0) OVER "
        "(PARTITION BY gpu ORDER BY ts ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before FROM samples "
        "WHERE metric = {metric:String} AND ts >= fromUnixTimestamp64Milli({back:Int64}, 'UTC') "
        f"AND ts <= fromUnixTimestamp64Milli({{end:Int64}}, 'UTC') {only}) "
        f"WHERE value > 0 AND value != before AND t >= {{start:Int64}} AND t >= toUnixTimestamp({upto}) * 1000) "
        f"ORDER BY t DESC, gpu LIMIT {limit:d} OFFSET {offset:d}"
    )
    return [
        Xid(int(t), int(gpu), int(labels), int(code)) for t, gpu, labels, code in store.query(sql, params, settings)
    ]


class Reject(NamedTuple):
    """A refused row: its address in the log, why, and what it said."""

    appended_ms: int
    reason: str
    detail: str
    session: int
    seq: int
    row: int
    gpu_id: str
    hostname: str
    metric: str
    timestamp_ns: int
    value: float


def _rejects_where(reason: str, start_ms: int | None, end_ms: int | None) -> tuple[str, dict[str, Any]]:
    parts, params = [], {}
    if reason:
        parts.append("reason = {reason:String}")
        params["reason"] = reason
    if start_ms is not None:
        parts.append("appended >= fromUnixTimestamp64Milli({start:Int64}, 'UTC')")
        params["start"] = start_ms
    if end_ms is not None:
        parts.append("appended <= fromUnixTimestamp64Milli({end:Int64}, 'UTC')")
        params["end"] = end_ms
    return " AND ".join(parts) or "1", params


def rejects(
    store: Reader,
    *,
    reason: str = "",
    start_ms: int | None = None,
    end_ms: int | None = None,
    limit: int,
    offset: int = 0,
    settings: Any = None,
) -> list[Reject]:
    """Refused rows by the time they were refused, newest first."""
    where, params = _rejects_where(reason, start_ms, end_ms)
    sql = (
        "SELECT toUnixTimestamp64Milli(appended), reason, detail, _session, _seq, row, gpu_id, hostname, metric, "
        f"timestamp_ns, value FROM rejects WHERE {where} "
        f"ORDER BY appended DESC, _session DESC, _seq DESC, row DESC LIMIT {limit:d} OFFSET {offset:d}"
    )
    return [Reject(*row) for row in store.query(sql, params, settings)]


def reject_reasons(
    store: Reader, *, reason: str = "", start_ms: int | None = None, end_ms: int | None = None, settings: Any = None
) -> dict[str, int]:
    """How many rows were refused, by reason."""
    where, params = _rejects_where(reason, start_ms, end_ms)
    sql = f"SELECT reason, count() FROM rejects WHERE {where} GROUP BY reason ORDER BY reason"
    return {str(name): int(rows) for name, rows in store.query(sql, params, settings)}
