"""``telemetry-clickhouse``: the store's command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clickhouse import retention
from clickhouse.backup import BadDestination, back_up, backups, restore
from clickhouse.client import DEFAULT_DATABASE, DEFAULT_URL, StoreAddress, StoreConnection
from clickhouse.errors import StoreError
from clickhouse.migrate import UnknownMigration, applied, bootstrap, migrate, plan
from clickhouse.migrations import all_migrations
from clickhouse.queries.tables import table_sizes
from clickhouse.rolling import roll
from clickhouse.rollup import retention_days
from clickhouse.schema import Flavour
from clickhouse.verify import SHOWN_MAX, BadExpectation, read_expected, repair, verify
from telemetry.options import (
    Command,
    CommandLine,
    Option,
    Positional,
    UsageError,
    common,
    duration_seconds,
    flag,
    non_negative_int,
    path,
    positive_int,
    size_bytes,
    url,
    usage_errors,
)

PROG = "telemetry-clickhouse"

WHO = (
    Option("user", "user of the store", "default", env="CLICKHOUSE_USER"),
    Option("password", "that user's password", "", env="CLICKHOUSE_PASSWORD", secret=True),
    Option("database", "database of the tables", DEFAULT_DATABASE, env="CLICKHOUSE_DATABASE"),
)
WHERE = (
    Option("url", "address of the ClickHouse HTTP interface", DEFAULT_URL, url, env="CLICKHOUSE_URL"),
    *WHO,
    Option("ca-file", "PEM file of the CA that signed the server's certificate", "", env="CLICKHOUSE_CA_FILE"),
    Option("cert-file", "PEM file of this client's certificate", ""),
    Option("key-file", "PEM file of this client's key", ""),
    Option("timeout", "longest wait for one statement", 3600.0, duration_seconds, "seconds"),
)
CLUSTER = (
    Option("cluster", "write the schema for this cluster: Replicated and Distributed tables", "", metavar="NAME"),
    Option("keeper-path", "where replicated tables meet in Keeper", "/clickhouse/tables/{shard}"),
)

SERVE = (
    Option("data-dir", "where the data lives; one process at a time", None, path, required=True),
    Option("migrate", "bring the schema up to date before serving", False, flag),
    *WHO,
    Option("readonly-user", "a second user who may only read", ""),
    Option("readonly-password", "that user's password", "", secret=True),
    Option("memory", "memory of the engine; 0 = half of the machine's", 0, size_bytes, "bytes"),
    Option(
        "max-execution-time",
        "longest insert, and longest query that asks for no time",
        60.0,
        duration_seconds,
        "seconds",
    ),
    Option("max-queries", "queries at the same time", 100, positive_int),
    Option("max-threads", "threads of one query; 0 = one a core", 0, non_negative_int),
    Option("max-body", "longest request body", 1 << 30, size_bytes, "bytes"),
)

BACKUP_HELP = "a name (a folder where the server keeps backups), or a destination such as Disk('backups', 'name')"

COMMAND_LINE = CommandLine(
    PROG,
    "STORE",
    "The store: an embedded ClickHouse, and the care of any ClickHouse.",
    common("127.0.0.1:8123"),
    {
        "serve": Command("run the embedded ClickHouse behind the ClickHouse HTTP interface", SERVE),
        "migrate": Command(
            "bring the schema up to date",
            (
                *WHERE,
                *CLUSTER,
                Option("to", "go to this version, forwards or back", None, non_negative_int, metavar="NUMBER"),
                Option("down", "go back by one version", False, flag),
                Option("dry-run", "print the statements and run nothing", False, flag),
                Option("yes", "go back even where rows are lost", False, flag),
            ),
        ),
        "rollup": Command(
            "keep the rollups up to date; harmless if two run",
            (
                *WHERE,
                *common("127.0.0.1:8084"),
                Option("interval", "pause between two looks", 5.0, duration_seconds, "seconds"),
                Option("once", "look once and end", False, flag),
            ),
        ),
        "verify": Command(
            "look for batches that are doubled, missing or short, and for rollups that differ from raw",
            (
                *WHERE,
                Option("repair", "keep one copy of each doubled batch and recompute its rollups", False, flag),
                Option("expect", "NDJSON of what was sent: session, seq, rows", None, path, metavar="FILE"),
            ),
        ),
        "retention": Command(
            "tell how long rows are kept, and change it",
            (
                *WHERE,
                *CLUSTER,
                Option("raw", "samples and rejects", None, positive_int, "days"),
                Option("minutes", "rollup by minute", None, positive_int, "days"),
                Option("hours", "rollup by hour, XID events", None, positive_int, "days"),
                Option("yes", "shorten even where rows are lost", False, flag),
            ),
        ),
        "backup": Command("back up the database", WHERE, (Positional("to", BACKUP_HELP),)),
        "restore": Command(
            "restore the database; collectors must not run meanwhile",
            (*WHERE, Option("over", "drop what is there now", False, flag)),
            (Positional("from", BACKUP_HELP),),
        ),
        "status": Command("tell the state of schema and tables", WHERE),
    },
)


def address_of(args: argparse.Namespace) -> StoreAddress:
    """Where the options point to."""
    return StoreAddress(
        url=args.url,
        user=args.user,
        password=args.password,
        database=args.database,
        ca_file=args.ca_file,
        cert_file=args.cert_file,
        key_file=args.key_file,
        timeout_s=args.timeout,
    )


def flavour_of(args: argparse.Namespace) -> Flavour:
    """How the options want the schema written."""
    try:
        return Flavour(
            database=args.database,
            kind="cluster" if args.cluster else "single",
            cluster=args.cluster or "default",
            keeper_path=args.keeper_path,
            user=args.user if args.password else "",
            password=args.password,
        )
    except ValueError as e:
        raise UsageError(str(e)) from None


def run_serve(args: argparse.Namespace) -> int:
    try:
        from clickhouse.embedded.serve import ServeOptions, serve
    except ImportError as e:
        raise UsageError(f"the embedded server needs the extra [embedded] ({e.name} is missing)") from None
    return serve(
        ServeOptions(
            data_dir=args.data_dir,
            http=args.http,
            user=args.user,
            password=args.password,
            readonly_user=args.readonly_user,
            readonly_password=args.readonly_password,
            memory_bytes=args.memory,
            max_execution_seconds=args.max_execution_time,
            max_queries=args.max_queries,
            max_threads=args.max_threads,
            max_body_bytes=args.max_body,
            migrate=args.migrate,
            database=args.database,
            insecure=args.insecure,
        ),
        args,
    )


def run_migrate(args: argparse.Namespace) -> int:
    flavour = flavour_of(args)
    with StoreConnection(address_of(args)) as conn:
        done = applied(conn, flavour)
        target = args.to
        if args.down:
            target = max(0, max(done, default=0) - 1)
        steps = plan(done, flavour, target)
        if args.dry_run:
            shown = Flavour(**{**vars(flavour), "password": "***"} if flavour.password else vars(flavour))
            for statement in bootstrap(shown) if steps and not done else []:
                print(f"{statement};\n")
            for step in plan(done, shown, target):
                print(f"-- {step.title}")
                for statement in step.statements:
                    print(f"{statement};\n")
            return 0
        losing = [step.title for step in steps if not step.forwards and step.migration.destroys]
        if losing and not args.yes:
            raise UsageError(f"{', '.join(losing)} drops rows for good: say --yes if that is meant")
        migrate(conn, flavour, target, lambda step: print(step.title))
    if not steps:
        print("nothing to do")
    return 0


def run_status(args: argparse.Namespace) -> int:
    flavour = Flavour(database=args.database)
    with StoreConnection(address_of(args)) as conn:
        done = applied(conn, flavour)
        newest = all_migrations()[-1].number
        print(f"server     ClickHouse {conn.server_version} at {conn.address.shown}")
        print(f"boot id    {conn.boot_id or 'none (no schema)'}")
        print(f"schema     {max(done, default=0)} of {newest}" + ("" if len(done) == newest else ": run migrate"))
        print(f"{'table':<16}{'rows':>16}{'bytes':>16}{'bytes/row':>11}{'parts':>7}{'partitions':>12}")
        for table in table_sizes(conn):
            per_row = table.bytes / max(table.rows, 1)
            print(
                f"{table.name:<16}{table.rows:>16,}{table.bytes:>16,}{per_row:>11.2f}"
                f"{table.parts:>7}{table.partitions:>12}"
            )
        for backup in backups(conn):
            print(f"backup     {backup.name} {backup.status} {backup.bytes:,} bytes {backup.error}".rstrip())
    return 0 if len(done) == newest else 1


def run_rollup(args: argparse.Namespace) -> int:
    return roll(address_of(args), args)


def run_verify(args: argparse.Namespace) -> int:
    try:
        expected = read_expected(args.expect) if args.expect else None
    except BadExpectation as e:
        raise UsageError(f"--expect {e}") from None
    with StoreConnection(address_of(args)) as conn:
        conn.check_boot_id()
        report = verify(conn, expected)
        for kind in ("doubled", "missing", "short", "unrolled"):
            findings = getattr(report, kind)
            for finding in findings[:SHOWN_MAX]:
                print(kind, " ".join(f"{name}={value}" for name, value in finding._asdict().items()))
        print(
            f"{report.rows:,} rows: {len(report.doubled)} batches doubled, {len(report.missing)} gaps, "
            f"{len(report.short)} batches of another size, {len(report.unrolled)} days of rollups that differ"
        )
        if args.repair and (report.doubled or report.unrolled):
            print(f"removed {repair(conn, report):,} rows")
            report = verify(conn, expected)
    return 0 if report.clean else 1


def run_retention(args: argparse.Namespace) -> int:
    flavour = flavour_of(args)
    wanted = {"samples": args.raw, "rejects": args.raw, "samples_1m": args.minutes, "samples_1h": args.hours}
    wanted["xid_events"] = args.hours
    with StoreConnection(address_of(args)) as conn:
        changes = retention.plan(conn, {table: days for table, days in wanted.items() if days})
        losing = [change for change in changes if change.rows_lost]
        if losing and not args.yes:
            told = ", ".join(f"{change.rows_lost:,} rows of {change.table}" for change in losing)
            raise UsageError(f"this lets go of {told}: say --yes if that is meant")
        retention.apply(conn, changes, flavour)
        for table in wanted:
            print(f"{table:<12}{retention_days(conn, table):>6} days")
    return 0


def run_backup(args: argparse.Namespace) -> int:
    with StoreConnection(address_of(args)) as conn:
        print(back_up(conn, args.to))
    return 0


def run_restore(args: argparse.Namespace) -> int:
    with StoreConnection(address_of(args)) as conn:
        print(restore(conn, vars(args)["from"], over=args.over))
        print("restart the server before collectors run again: its boot id must change", file=sys.stderr)
    return 0


RUN = {
    "serve": run_serve,
    "migrate": run_migrate,
    "rollup": run_rollup,
    "verify": run_verify,
    "retention": run_retention,
    "backup": run_backup,
    "restore": run_restore,
    "status": run_status,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 a problem found or met, 2 usage."""
    args = COMMAND_LINE.parse(argv)
    with usage_errors(PROG):
        try:
            return RUN[args.command](args)
        except (UnknownMigration, BadDestination) as e:
            raise UsageError(str(e)) from None
        except StoreError as e:
            print(f"{PROG}: {e}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
