"""``telemetry-clickhouse serve``: the embedded server as a process."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.embedded.engine import DataDirectory, Engine, EngineError, Limits, quoted, quoted_name
from clickhouse.embedded.server import StoreServer
from clickhouse.embedded.users import User, Users
from clickhouse.errors import StoreRefused
from clickhouse.migrate import migrate
from clickhouse.schema import Flavour
from telemetry import metrics
from telemetry.addresses import listening_socket
from telemetry.health import Check
from telemetry.service import Service

NOT_ENOUGH_SPACE: Final = 243
NO_SCHEMA: Final = frozenset({36, 60, 81})
"""No such dictionary, table or database yet."""


@dataclass(frozen=True)
class ServeOptions:
    """What ``serve`` was asked for."""

    data_dir: Path
    http: str
    user: str
    password: str
    readonly_user: str
    readonly_password: str
    memory_bytes: int
    max_execution_seconds: float
    max_queries: int
    max_threads: int
    max_body_bytes: int
    migrate: bool
    database: str
    insecure: bool

    @property
    def users(self) -> Users:
        users = [User(self.user, self.password)]
        if self.readonly_user:
            users.append(User(self.readonly_user, self.readonly_password, readonly=True))
        return Users(*users)


def machine_memory() -> int:
    """Bytes of memory that this process may count on: the machine's, or its control group's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, int(limit)) if limit.isdecimal() else total
    except OSError:
        return total


def limits(options: ServeOptions) -> Limits:
    memory = options.memory_bytes or machine_memory() // 2
    return Limits(
        memory_bytes=memory,
        query_memory_bytes=max(memory // 2, 64 << 20),
        execution_seconds=options.max_execution_seconds,
        queries_max=options.max_queries,
        threads=options.max_threads or os.cpu_count() or 1,
    )


def serve(options: ServeOptions, args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT. Raises :class:`telemetry.options.UsageError` for what cannot be used."""
    service = Service(
        "telemetry-clickhouse",
        log_level=args.log_level,
        log_format=args.log_format,
        drain_timeout_s=args.drain_timeout,
    )
    users = options.users
    data = DataDirectory(options.data_dir)
    try:
        # The address before the engine: a wrong one is told at once.
        sock = listening_socket(options.http, "--http", insecure=options.insecure, keys=users.protected)
        with service:
            engine = Engine(data, limits(options))
            vouched = _vouch(engine, options, service)
            server = StoreServer(sock, engine, users, body_bytes_max=options.max_body_bytes, own_pages=service.http_app)
            service.check("engine", lambda: _check(server))
            metrics.on_scrape(service.registry, lambda: _samples(server))
            migrated = threading.Event()
            migrating = Check("degraded", "the schema is being brought up to date", ready=False)
            service.check("schema", lambda: Check() if migrated.is_set() else migrating)
            server.start()
            try:
                if options.migrate:
                    _migrate(server, options, service)
                    vouched = vouched or _vouch(engine, options, service)
                migrated.set()
                service.log.info(
                    "listening",
                    extra={"address": server.address, "version": engine.version, "data_dir": str(data.path)},
                )
                _tell_of_broken_parts(engine, service)
                service.stopping.wait()
            finally:
                killed = server.stop(max(0.0, service.drain_seconds_left() - 2))
                data.ends_well()
            service.log.info("stopped", extra={"queries_killed": killed})
    finally:
        data.release()
    return 0


def _migrate(server: StoreServer, options: ServeOptions, service: Service) -> None:
    host, _, port = server.address.rpartition(":")
    reachable = "127.0.0.1" if host in ("0.0.0.0", "[::]", "") else host
    address = StoreAddress(
        f"http://{reachable}:{port}", user=options.user, password=options.password, database=options.database
    )
    while True:
        try:
            with StoreConnection(address) as conn:
                for step in migrate(conn, Flavour(database=options.database)):
                    service.log.info("migrated", extra={"step": step.title})
            return
        except StoreRefused as e:
            # No space just now: statements may be repeated, and a disk is emptied sooner than a process restarted.
            if e.code != NOT_ENOUGH_SPACE or service.stopping.wait(1.0):
                raise
            service.log.warning("the schema waits for space on the disk", extra={"reason": str(e)})


def _vouch(engine: Engine, options: ServeOptions, service: Service) -> bool:
    """After an end in good order nobody has to look for lost rows (R16). False where that could not be written down:
    then somebody looks, and finds all in place."""
    if not engine.data.ended_well:
        return False
    name = quoted_name(options.database)
    boot_id = f"dictGet({quoted(f'{options.database}.boot')}, 'id', toUInt64(0))"
    try:
        with engine.handle() as handle:
            handle.run(f"INSERT INTO {name}.boots (id, why) SELECT {boot_id}, 'the one before ended in good order'")
    except EngineError as e:
        if e.code not in NO_SCHEMA:
            service.log.warning("could not vouch for the end before this start", extra={"reason": str(e)})
        return False
    return True


def _tell_of_broken_parts(engine: Engine, service: Service) -> None:
    """After a loss of power or a fault of the disk the engine puts aside what it cannot read (R16)."""
    with engine.handle() as handle:
        found = handle.run(
            "SELECT concat(database, '.', table, ' ', name) FROM system.detached_parts WHERE reason LIKE 'broken%'"
        )
    if parts := str(found).splitlines():
        service.log.error(
            "parts that cannot be read were put aside; rows of a merge are back from what it was made of, others "
            "collectors have delivered once more, or: zmqbroker admin replay TOPIC --into GROUP --from now-15m",
            extra={"parts": len(parts), "first": parts[0]},
        )


def _check(server: StoreServer) -> Check:
    running = len(server.engine.queries())
    if running >= server.engine.limits.queries_max:
        return Check("degraded", f"{running} queries run: the most that --max-queries allows")
    if server.space.low():
        return Check("degraded", "the disk is nearly full: inserts are refused until there is space")
    return Check()


def _samples(server: StoreServer) -> Iterator[metrics.Sample]:
    counters = server.counters
    yield "store_connections", (), counters.connections
    yield "store_queries_running", (), len(server.engine.queries())
    yield "store_queries_total", (), counters.queries
    yield "store_query_errors_total", (), counters.errors
    yield "store_queries_cancelled_total", (), counters.queries_cancelled
    yield "store_inserts_total", (), counters.inserts
    yield "store_rows_inserted_total", (), counters.rows_inserted
    yield "store_bodies_refused_total", (), counters.bodies_refused
