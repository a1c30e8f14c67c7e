"""How much is stored and refused, and how far behind the newest row is: cheap enough to ask every other second."""

from __future__ import annotations

from typing import Any

from clickhouse.queries.inventory import Reader

# count() without a condition, and min and max of the partition key's column, are answered from parts' metadata.
_SAMPLES = "SELECT count(), toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)), uptime() FROM samples"
_REJECTS = "SELECT count() FROM rejects"
_SIZES = """
SELECT table, sum(rows), sum(bytes_on_disk), sum(data_uncompressed_bytes), count()
FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table ORDER BY table
"""


def pipeline(store: Reader) -> dict[str, Any]:
    """Rows stored and refused, oldest and newest time (ms, None without rows), the server's uptime, sizes by table."""
    rows, first, last, uptime = store.query(_SAMPLES)[0]
    return {
        "samples_rows": int(rows),
        "rejects_rows": int(store.query(_REJECTS)[0][0]),
        "first_ms": int(first) if rows else None,
        "last_ms": int(last) if rows else None,
        "uptime_seconds": int(uptime),
        "tables": {
            str(table): {
                "rows": int(n),
                "bytes_on_disk": int(disk),
                "bytes_uncompressed": int(raw),
                "parts": int(parts),
            }
            for table, n, disk, raw, parts in store.query(_SIZES)
        },
    }
