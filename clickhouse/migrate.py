"""Bringing a database to a schema version, and telling which it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from clickhouse.client import StoreConnection
from clickhouse.errors import StoreRefused
from clickhouse.migrations import Migration, all_migrations
from clickhouse.schema import Flavour


class Step(NamedTuple):
    """One migration to run in one direction, with its statements."""

    migration: Migration
    forwards: bool
    statements: list[str]

    @property
    def title(self) -> str:
        return f"{'+' if self.forwards else '-'}{self.migration.number:04d} {self.migration.name}"


class UnknownMigration(ValueError):
    """The database has been at, or is asked to go to, a version that this program does not know."""


def applied(conn: StoreConnection, flavour: Flavour) -> set[int]:
    """Numbers of the migrations that the database has."""
    try:
        rows = conn.query(
            f"SELECT number FROM {flavour.table('migrations')} GROUP BY number HAVING argMax(is_applied, at) = 1"
        )
    except StoreRefused as e:
        if e.code in (60, 81):  # no table, no database: nothing was ever applied
            return set()
        raise
    return {int(row[0]) for row in rows}


def plan(done: set[int], flavour: Flavour, target: int | None = None) -> list[Step]:
    """The steps from what is applied to ``target`` (None: the newest; 0: nothing)."""
    known = all_migrations()
    newest = known[-1].number
    if unknown := done - {m.number for m in known}:
        raise UnknownMigration(f"the database has migration {max(unknown)}, this program knows {newest}: update it")
    goal = newest if target is None else target
    if not 0 <= goal <= newest:
        raise UnknownMigration(f"there is no migration {goal}; the newest is {newest}")
    up = [Step(m, True, m.forwards(flavour)) for m in known if m.number <= goal and m.number not in done]
    down = [Step(m, False, m.backwards(flavour)) for m in reversed(known) if m.number > goal and m.number in done]
    return down + up


def bootstrap(flavour: Flavour) -> list[str]:
    """What has to be there before the first migration can be recorded."""
    return [
        f"CREATE DATABASE IF NOT EXISTS {flavour.database}{flavour.on_cluster}",
        *([f"CREATE DATABASE IF NOT EXISTS {flavour.database_all}{flavour.on_cluster}"] if flavour.is_cluster else []),
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("migrations")}{flavour.on_cluster}
(
    number UInt32,
    name String,
    is_applied UInt8,
    at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = {flavour.engine("migrations")}
ORDER BY (number, at)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1""",
    ]


def migrate(
    conn: StoreConnection, flavour: Flavour, target: int | None = None, tell: Callable[[Step], None] | None = None
) -> list[Step]:
    """Run what is missing. Two at the same time are harmless: every statement may be repeated."""
    steps = plan(applied(conn, flavour), flavour, target)
    if not steps:
        return steps
    for statement in bootstrap(flavour):
        conn.command(statement)
    for step in steps:
        for statement in step.statements:
            conn.command(statement)
        conn.command(
            f"INSERT INTO {flavour.table('migrations')} (number, name, is_applied) "
            f"SELECT {{number:UInt32}}, {{name:String}}, {{is_applied:UInt8}}",
            {"number": step.migration.number, "name": step.migration.name, "is_applied": int(step.forwards)},
        )
        if tell is not None:
            tell(step)
    return steps
