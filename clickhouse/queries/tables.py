"""How large the tables are: from the server's own books, whatever the number of rows."""

from __future__ import annotations

from typing import NamedTuple

from clickhouse.client import StoreConnection


class TableSize(NamedTuple):
    """One table. ``bytes`` on disk, compressed."""

    name: str
    rows: int
    bytes: int
    parts: int
    partitions: int


def table_sizes(conn: StoreConnection) -> list[TableSize]:
    """Every table of the store, by name."""
    rows = conn.query(
        """SELECT name, rows, bytes, parts, partitions
FROM (SELECT name FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree') AS t
LEFT JOIN (
    SELECT table AS name, sum(rows) AS rows, sum(bytes_on_disk) AS bytes, count() AS parts,
           countDistinct(partition) AS partitions
    FROM system.parts WHERE active AND database = {database:String} GROUP BY table) AS p USING (name)
ORDER BY name""",
        {"database": conn.address.database},
    )
    return [TableSize(*row) for row in rows]
