"""``telemetry-collector archive``: the command line."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from consumers.archive import Archiver, ArchiveSettings
from consumers.checkpoint import Directory
from consumers.cli_options import BROKER, RULES, broker_check, rules_of
from consumers.source import BrokerSource
from telemetry import metrics
from telemetry.options import (
    CommandLine,
    Option,
    UsageError,
    common,
    duration_seconds,
    path,
    positive_int,
    size_bytes,
    usage_errors,
)
from telemetry.service import Service
from zmqbroker.client import Consumer
from zmqbroker.client.options import keys_from

PROG = "telemetry-collector archive"
ROWS_A_DELIVERY = 250_000

OPTIONS = (
    Option("out", "directory of the archive; one process at a time", None, path, required=True),
    Option(
        "format",
        "parquet: files by day and host; jsonl: one growing file a GPU",
        "parquet",
        choices=("parquet", "jsonl"),
    ),
    Option("group", "consumer group; one archive process a group", "archive"),
    Option("rows", "rows of a commit; they are held in memory until then", 2_000_000, positive_int, "rows"),
    Option("every", "longest time between commits", 60.0, duration_seconds, "seconds"),
    Option("max-bytes", "bytes of a delivery", 32 << 20, size_bytes, "bytes"),
)

COMMAND_LINE = CommandLine(
    PROG,
    "COLLECTOR",
    "Keeps cold copies of all accepted rows in files, every row once.",
    (*common("127.0.0.1:8086"), *BROKER, *OPTIONS, *RULES),
)


def main(argv: Sequence[str]) -> None:
    args = COMMAND_LINE.parse(argv)
    with usage_errors(PROG):
        directory = Directory(Path(args.out), args.format)
        with Service.from_args(PROG.replace(" ", "-"), args) as service:
            archive(args, directory, service)


def archive(args: argparse.Namespace, directory: Directory, service: Service) -> None:
    """Run until the service is asked to stop, commit what is held, leave."""
    settings = ArchiveSettings(
        rows_max=args.rows,
        every_s=args.every,
        # Enough deliveries for a commit of full ones, and one to be on its way.
        credit=-(-args.rows // ROWS_A_DELIVERY) + 1,
        rules=rules_of(args),
    )
    consumer = Consumer(
        args.connect,
        args.topic,
        args.group,
        credit=0,
        max_rows=ROWS_A_DELIVERY,
        max_bytes=args.max_bytes,
        linger_ms=1000,
        name=args.name or socket.gethostname(),
        keys=keys_from(args),
    )
    source = BrokerSource(consumer)
    try:
        archiver = Archiver(source, directory, settings, log=service.log)
        metrics.on_scrape(service.registry, lambda: samples(archiver))
        service.check("broker", lambda: broker_check(source, args.connect))
        service.route("/stats", lambda: stats(archiver))
        service.log.info("archiving", extra={"broker": args.connect, "group": args.group, "out": str(args.out)})
        try:
            archiver.run(service.stopping, lambda: source.error is not None)
        except OSError as e:
            # What is held is not acknowledged: it comes again, and the next start takes back what does not count.
            raise SystemExit(
                f"{PROG}: {args.out}: {e.strerror}; nothing is lost, start again when it is repaired"
            ) from None
    finally:
        source.close(2.0)
    if source.error is not None:
        raise UsageError(f"{args.connect}: {source.error}")
    service.log.info("stopped", extra=stats(archiver))


def stats(archiver: Archiver) -> dict[str, object]:
    """The body of /stats."""
    return {
        "received_rows": archiver.received_rows,
        "rejected_rows": archiver.rejected_rows,
        "archived_rows": archiver.archived_rows,
        "commits": archiver.commits,
        "skipped_batches": archiver.skipped_records,
        "dead_batches": archiver.dead_batches,
    }


def samples(archiver: Archiver) -> Iterator[metrics.Sample]:
    yield "collector_rows_received_total", (), archiver.received_rows
    yield "collector_rows_stored_total", (), archiver.archived_rows
    yield "collector_batches_repeated_total", (), archiver.skipped_records
    yield "collector_batches_dead_total", (), archiver.dead_batches
