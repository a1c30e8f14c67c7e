"""``telemetry-clickhouse``: the store's command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clickhouse.client import DEFAULT_DATABASE, DEFAULT_URL, StoreAddress, StoreConnection
from clickhouse.errors import StoreError
from clickhouse.migrate import UnknownMigration, applied, bootstrap, migrate, plan
from clickhouse.migrations import all_migrations
from clickhouse.queries.tables import table_sizes
from clickhouse.rolling import roll
from clickhouse.schema import Flavour
from telemetry.options import (
    Command,
    CommandLine,
    Option,
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
    return 0 if len(done) == newest else 1


def run_rollup(args: argparse.Namespace) -> int:
    return roll(address_of(args), args)


RUN = {"serve": run_serve, "migrate": run_migrate, "rollup": run_rollup, "status": run_status}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 a problem found or met, 2 usage."""
    args = COMMAND_LINE.parse(argv)
    with usage_errors(PROG):
        try:
            return RUN[args.command](args)
        except UnknownMigration as e:
            raise UsageError(str(e)) from None
        except StoreError as e:
            print(f"{PROG}: {e}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
