"""How long rows are kept. Longer never loses a row; shorter says first how many it would."""

from __future__ import annotations

from typing import Final, NamedTuple

from clickhouse.client import StoreConnection
from clickhouse.rollup import retention_days
from clickhouse.schema import Flavour

TIME_COLUMNS: Final = {
    "samples": "ts",
    "rejects": "appended",
    "samples_1m": "bucket",
    "samples_1h": "bucket",
    "xid_events": "ts",
}
"""Tables with a retention, and the column it counts from."""


class Change(NamedTuple):
    """A table's retention before and after, in days, and the rows that the new one lets go."""

    table: str
    before: int
    after: int
    rows_lost: int


def plan(conn: StoreConnection, days: dict[str, int]) -> list[Change]:
    """What setting these retentions would do."""
    changes = []
    for table, after in days.items():
        before = retention_days(conn, table)
        if before == after:
            continue
        column = TIME_COLUMNS[table]
        lost = (
            conn.scalar(
                f"SELECT count() FROM {conn.address.database}.{table} "
                f"WHERE toDateTime({column}) < now() - toIntervalDay({after:d})"
            )
            if after < before
            else 0
        )
        changes.append(Change(table, before, after, int(lost)))
    return changes


def apply(conn: StoreConnection, changes: list[Change], flavour: Flavour) -> None:
    """Set the retentions, for the parts that are there as well: only their notes on time are written again.

    Parts are dropped when all their rows are too old; the server looks for such every few hours.
    """
    for change in changes:
        conn.command(
            f"ALTER TABLE {flavour.table(change.table)}{flavour.on_cluster} MODIFY TTL "
            f"toDateTime({TIME_COLUMNS[change.table]}) + toIntervalDay({change.after:d})",
            settings={
                "materialize_ttl_after_modify": 1,
                "mutations_sync": 2,
                "alter_sync": 2,
                "max_execution_time": 3600,
            },
        )
