"""Is a batch stored? The question behind every doubtful insert (R13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol

from clickhouse.client import StoreConnection

_CHUNK: Final = 2_000
"""Probes a query: keeps a URL of bound arrays below the servers' limits."""


class Probe(NamedTuple):
    """The first valid row of one batch on one day: where its primary key is, the whole (batch, day) is, because one
    INSERT of one block is stored whole or not at all (R15)."""

    session: int
    seq: int
    day: int
    """Days since the epoch."""
    gpu: int
    metric: str
    ts_ms: int


class ProbeLike(Protocol):
    """Anything with the fields of :class:`Probe`."""

    @property
    def session(self) -> int: ...
    @property
    def seq(self) -> int: ...
    @property
    def day(self) -> int: ...
    @property
    def gpu(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def ts_ms(self) -> int: ...


def presence(conn: StoreConnection, probes: Sequence[ProbeLike]) -> Mapping[tuple[int, int, int], int]:
    """How often the probed row is stored, by (session, seq, day); what is absent is left out.

    1 is what a stored batch gives; more means that the batch holds the row more than once or was stored twice.
    Asked on the local table: insert and check go to the same replica (R18).
    """
    found: dict[tuple[int, int, int], int] = {}
    by_day: dict[int, list[ProbeLike]] = {}
    for probe in probes:
        by_day.setdefault(probe.day, []).append(probe)
    for day, of_day in by_day.items():
        for start in range(0, len(of_day), _CHUNK):
            rows = conn.query(
                f"""SELECT _session, _seq, count()
FROM {conn.address.database}.samples
WHERE toDate(ts) = {{day:Date}}
  AND (gpu, metric, ts, _session, _seq) IN (
    SELECT gpu, metric, fromUnixTimestamp64Milli(ts_ms, 'UTC'), session, seq
    FROM (SELECT {{gpus:Array(UInt64)}} AS gpu, {{metrics:Array(String)}} AS metric, {{times:Array(Int64)}} AS ts_ms,
                 {{sessions:Array(UInt64)}} AS session, {{seqs:Array(UInt64)}} AS seq)
    ARRAY JOIN gpu, metric, ts_ms, session, seq)
GROUP BY _session, _seq""",
                _parameters(day, of_day[start : start + _CHUNK]),
                # What another collector's insert has just committed must be seen: no cached answer, no stale replica.
                {"use_query_cache": 0},
            )
            found.update({(int(session), int(seq), day): int(count) for session, seq, count in rows})
    return found


def _parameters(day: int, probes: Sequence[ProbeLike]) -> dict[str, object]:
    return {
        "day": date_of(day),
        "gpus": [probe.gpu for probe in probes],
        "metrics": [probe.metric for probe in probes],
        "times": [probe.ts_ms for probe in probes],
        "sessions": [probe.session for probe in probes],
        "seqs": [probe.seq for probe in probes],
    }


def presence_of_rejects(
    conn: StoreConnection, day: int, addresses: Sequence[tuple[int, int]]
) -> Mapping[tuple[int, int], int]:
    """Stored rejects by (session, seq) among those appended on ``day``."""
    if not addresses:
        return {}
    rows = conn.query(
        f"""SELECT _session, _seq, count()
FROM {conn.address.database}.rejects
WHERE toDate(appended) = {{day:Date}}
  AND (_session, _seq) IN (
    SELECT session, seq FROM (SELECT {{sessions:Array(UInt64)}} AS session, {{seqs:Array(UInt64)}} AS seq)
    ARRAY JOIN session, seq)
GROUP BY _session, _seq""",
        {"day": date_of(day), "sessions": [a for a, _ in addresses], "seqs": [b for _, b in addresses]},
        {"use_query_cache": 0},
    )
    return {(int(session), int(seq)): int(count) for session, seq, count in rows}


def date_of(day: int) -> str:
    """ISO date of a day since the epoch."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
