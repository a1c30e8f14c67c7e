"""``telemetry-collector``: batches from a broker into ClickHouse, every row once."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from clickhouse.client import DEFAULT_DATABASE, DEFAULT_URL, StoreAddress, StoreConnection
from consumers import archive_cli
from consumers.cli_options import BROKER, RULES, broker_check, rules_of
from consumers.collector import Collector, CollectorSettings
from consumers.recovery import Recovery
from consumers.source import BrokerSource
from consumers.stats import Stats
from consumers.store import KnownLabels, open_session
from telemetry import metrics, tracing
from telemetry.batch import ROWS_MAX
from telemetry.options import (
    CommandLine,
    Option,
    UsageError,
    common,
    duration_seconds,
    path,
    positive_int,
    size_bytes,
    url,
    usage_errors,
)
from telemetry.service import Check, Service
from zmqbroker.client import Consumer, DirectConsumer
from zmqbroker.client.operating import replay
from zmqbroker.client.options import keys_from, listening_keys
from zmqbroker.errors import BrokerError

PROG = "telemetry-collector"

LEASE_S_MIN = 10.0
"""Below three times the silence after which a collector itself takes its lease for over, the two would race."""


def lease_seconds(text: str) -> float:
    seconds = duration_seconds(text)
    if seconds < LEASE_S_MIN:
        raise ValueError(f"is below {LEASE_S_MIN:g} s")
    return seconds


def url_or_off(text: str) -> str:
    return text if text == "off" else url(text)


STORE = (
    Option("clickhouse", "ClickHouse HTTP interface to insert into", DEFAULT_URL, url, env="CLICKHOUSE_URL"),
    Option("user", "ClickHouse user", "default", env="CLICKHOUSE_USER"),
    Option("password", "ClickHouse password", "", env="CLICKHOUSE_PASSWORD", secret=True),
    Option("database", "ClickHouse database", DEFAULT_DATABASE, env="CLICKHOUSE_DATABASE"),
    Option("ca-file", "PEM file of the CA of an https store", None, path),
    Option(
        "insert-compression", "of insert bodies: none on loopback, lz4 over a network", "none", choices=("none", "lz4")
    ),
)
COLLECT = (
    Option("group", "consumer group; members of one group share the work", "clickhouse"),
    Option("workers", "threads that decode and insert, each with a connection of its own", 2, positive_int),
    Option("credit", "deliveries held at a time; 0 = two a worker", 0, int, "deliveries"),
    Option("max-rows", "rows of a delivery, of one INSERT; all members say the same", 250_000, positive_int, "rows"),
    Option("max-bytes", "bytes of a delivery; all members say the same", 32 << 20, size_bytes, "bytes"),
    Option("ack-timeout", "silence after which the broker gives our ranges to another", 30.0, lease_seconds, "seconds"),
    Option(
        "broker-admin",
        "broker's admin address, asked to deliver the last minutes once more after an unclean start of the store; "
        "off: nobody is asked",
        "tcp://127.0.0.1:5556",
        url_or_off,
        env="ZMQBROKER_ADMIN_URL",
    ),
    Option("linger", "longest wait for a delivery to fill; all members say the same", 0.1, duration_seconds, "seconds"),
)

DIRECT = (
    Option("bind", "take batches straight from producers that connect here, without a broker; several with commas", ""),
    Option("allow-list", "with --bind: file of the producers' public keys; needed with --curve-key", None, path),
    Option("dead-letters", "with --bind: directory for batches that cannot be stored", "data/collector-dead", path),
)

COMMAND_LINE = CommandLine(
    PROG,
    "COLLECTOR",
    "Takes batches from the broker and stores every row in ClickHouse exactly once. "
    f"`{PROG} archive --help`: keep cold copies in files instead.",
    (*common("127.0.0.1:8082"), *BROKER, *DIRECT, *STORE, *COLLECT, *RULES),
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["archive"]:
        archive_cli.main(arguments[1:])
        return
    args = COMMAND_LINE.parse(arguments)
    with usage_errors(PROG):
        address = store_address(args)
        with Service.from_args(PROG, args) as service:
            collect(args, address, service)


def store_address(args: argparse.Namespace) -> StoreAddress:
    """Where the store is. Raises :class:`UsageError` for a URL that is none."""
    address = StoreAddress(
        url=args.clickhouse,
        user=args.user,
        password=args.password,
        database=args.database,
        ca_file=str(args.ca_file or ""),
        compression=args.insert_compression,
    )
    try:
        address.driver_arguments()
    except ValueError as e:
        raise UsageError(f"--clickhouse: {e}") from None
    return address


def consumer_of(args: argparse.Namespace) -> Consumer | DirectConsumer:
    """A member of a group at the broker, or with ``--bind`` a listener for producers (R30). Raises UsageError."""
    if args.bind:
        if args.server_key:
            raise UsageError("--server-key is of no use with --bind: give --curve-key and --allow-list")
        keys = listening_keys(args.curve_key, args.allow_list, args.bind.split(","), insecure=args.insecure)
        try:
            return DirectConsumer(
                args.bind,
                args.topic,
                credit=0,
                max_rows=args.max_rows,
                max_bytes=args.max_bytes,
                linger_ms=round(args.linger * 1000),
                dead_letters=args.dead_letters,
                keys=keys,
            )
        except BrokerError as e:
            raise UsageError(f"--bind: {e}") from None
    if args.allow_list is not None:
        raise UsageError("--allow-list is for --bind; with a broker give --curve-key and --server-key")
    return Consumer(
        args.connect,
        args.topic,
        args.group,
        credit=0,  # until the store has answered
        max_rows=args.max_rows,
        max_bytes=args.max_bytes,
        linger_ms=round(args.linger * 1000),
        name=args.name or socket.gethostname(),
        keys=keys_from(args),
        options={"ack_timeout_s": args.ack_timeout},
    )


def collect(args: argparse.Namespace, address: StoreAddress, service: Service) -> None:
    """Run until the service is asked to stop, then drain. Raises :class:`UsageError` if the broker refuses us."""
    source = BrokerSource(consumer_of(args))
    settings = CollectorSettings(
        workers=args.workers,
        credit=args.credit or 2 * args.workers,
        rules=rules_of(args),
    )
    stats, known = Stats.of_wall_clock(), KnownLabels()
    seconds = metrics.histogram(service.registry, "collector_insert_seconds")
    collector = Collector(
        source,
        lambda: open_session(address, known, rows_max=max(args.max_rows, ROWS_MAX)),
        settings,
        log=service.log,
        stats=stats,
        on_insert=seconds.observe,
    )
    metrics.on_scrape(service.registry, stats.samples)
    service.check("broker", lambda: broker_check(source, args.bind or args.connect))
    service.check("store", lambda: store_check(collector, address))
    service.check("workers", lambda: workers_check(collector, service))
    service.route("/stats", stats.as_dict)
    service.log.info(
        "collecting",
        extra={
            "broker": "" if args.bind else args.connect,
            "bind": args.bind,
            "group": args.group,
            "store": address.shown,
            "rules": settings.rules.version,
        },
    )
    tracing.start(service.name)
    collector.start()
    follow_up(args, address, service)
    try:
        while not service.stopping.wait(0.5) and source.error is None and collector.alive:
            pass
    finally:
        drained = collector.stop(max(0.0, service.drain_seconds_left() - 1.0))
        source.close(1.0)
        tracing.stop()
    if source.error is not None:
        raise UsageError(f"{args.connect}: {source.error}")
    service.log.info("stopped", extra={"drained": drained, **figures(stats)})
    if not service.stopping.is_set():
        raise SystemExit("a worker ended by itself: this is a defect; its log line above says where")


def follow_up(args: argparse.Namespace, address: StoreAddress, service: Service) -> None:
    """Look after unclean starts of the store until the service ends, where there is a broker to ask (R16)."""
    if args.bind or args.broker_admin == "off":
        return
    keys = keys_from(args)
    recovery = Recovery(
        lambda: StoreConnection(address),
        lambda since_s: replay(args.broker_admin, args.topic, args.group, since_s, keys=keys),
        stopping=service.stopping,
        log=service.log,
    )
    service.check("recovery", recovery.check)
    recovery.start()


def figures(stats: Stats) -> dict[str, object]:
    """The few numbers that a last log line should have."""
    wanted = ("received_rows", "stored_rows", "rejected_rows", "dead_rows", "duplicates_avoided_rows")
    return {name: value for name, value in stats.as_dict().items() if name in wanted}


def store_check(collector: Collector, address: StoreAddress) -> Check:
    if collector.breaker.closed:
        return Check()
    return Check("unhealthy", f"{address.shown}: {collector.breaker.reason}", ready=False)


def workers_check(collector: Collector, service: Service) -> Check:
    if collector.alive or service.stopping.is_set():
        return Check()
    return Check("unhealthy", "a worker has ended by a defect", ready=False, alive=False)


if __name__ == "__main__":
    main()
