"""Backup and restore, by the server's own BACKUP and RESTORE."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from clickhouse.client import StoreConnection

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_DESTINATION: Final = re.compile(r"(File|Disk|S3|AzureBlobStorage)\(.+\)\Z", re.DOTALL)
_SETTINGS: Final = {"max_execution_time": 24 * 3600}


class BadDestination(ValueError):
    """Neither a plain name nor a destination such as ``Disk('backups', 'name')``."""


class Backup(NamedTuple):
    """One backup or restore that the server remembers since its start."""

    name: str
    status: str
    error: str
    bytes: int
    files: int


def destination(text: str) -> str:
    """What goes behind TO or FROM: a name is a folder where the server keeps backups; else a ClickHouse expression."""
    if _DESTINATION.match(text):
        return text
    if not _NAME.match(text):
        raise BadDestination(f"{text!r} is neither a name nor a destination such as Disk('backups', 'name')")
    return f"File('{text}')"


def back_up(conn: StoreConnection, to: str) -> str:
    """Back up the whole database; returns its status. Raises :class:`clickhouse.errors.StoreError`."""
    sql = f"BACKUP DATABASE {conn.address.database} TO {destination(to)}"
    return str(conn.query(sql, None, _SETTINGS)[0][1])


def restore(conn: StoreConnection, source: str, *, over: bool = False) -> str:
    """Restore the database as it was. ``over`` drops what is there now; else tables with rows are an error.

    Collectors must not run meanwhile: what they know of the store is not true of the restored one. Restart the server
    afterwards, so that its boot id says so (R12, R13).
    """
    database = conn.address.database
    if over:
        conn.command(f"DROP DATABASE IF EXISTS {database} SYNC")
    return str(conn.query(f"RESTORE DATABASE {database} FROM {destination(source)}", None, _SETTINGS)[0][1])


def backups(conn: StoreConnection) -> list[Backup]:
    """Backups and restores since the server's start, the newest first."""
    rows = conn.query(
        "SELECT name, toString(status), error, total_size, num_files FROM system.backups ORDER BY start_time DESC"
    )
    return [Backup(*row) for row in rows]
