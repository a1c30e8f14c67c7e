"""After which starts of the server did something look for rows that the one before may have lost (R16)?

A start is settled when the server vouches for the end before it (the embedded one does after a stop in good order),
or when a collector has had what was stored lately delivered once more.
"""

from __future__ import annotations

from clickhouse.client import StoreConnection


def is_settled(conn: StoreConnection) -> bool:
    """Whether nobody has to look any more after the start of the server that this connection belongs to."""
    sql = f"SELECT count() FROM {conn.address.database}.boots WHERE id = {{id:UUID}}"
    return bool(conn.scalar(sql, {"id": conn.boot_id}))


def settle(conn: StoreConnection, why: str) -> None:
    """Nobody has to look any more. Said twice it is as true."""
    sql = f"INSERT INTO {conn.address.database}.boots (id, why) SELECT {{id:UUID}}, {{why:String}}"
    conn.command(sql, {"id": conn.boot_id, "why": why})


def last_write_s(conn: StoreConnection) -> float:
    """When rows were last written before this start of the server, unix seconds; if nobody knows, when it started."""
    sql = (
        "SELECT toUnixTimestamp(now() - uptime()) AS start, "
        "(SELECT toUnixTimestamp(max(modification_time)) FROM system.parts WHERE database = {database:String} "
        "AND table IN ('samples', 'rejects') AND modification_time <= now() - uptime()) AS wrote "
    )
    start, wrote = conn.query(sql, {"database": conn.address.database})[0]
    return float(wrote or start)
