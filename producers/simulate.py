"""``telemetry-streamer simulate``: a made-up fleet, to the broker or into a CSV file."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from producers.fleet import FleetSpec
from producers.pacing import batch_rows_for_rate
from producers.source import share
from producers.task import FleetTask
from telemetry.options import UsageError


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code. Raises :class:`UsageError` for what the caller must change."""
    spec = FleetSpec(args.hosts, args.gpus_per_host, args.metrics, args.seed, args.interval or 1.0)
    if args.exporter:
        return _as_exporter(args, spec)
    return _to_file(args, spec) if args.out is not None else _to_broker(args, spec)


def _as_exporter(args: argparse.Namespace, spec: FleetSpec) -> int:
    from producers.exporter import FleetExporter
    from telemetry.addresses import listening_socket
    from telemetry.http import HttpServer
    from telemetry.service import Service

    service = Service.from_args("telemetry-streamer", args)
    sock = listening_socket(args.exporter, "--exporter", insecure=args.insecure)
    server = HttpServer(FleetExporter(spec, args.generation), sock)
    with service:
        server.start()
        service.log.info("exporter listening", extra={"address": server.address, "gpus": spec.gpus})
        service.stopping.wait(args.duration or None)
        server.stop()
    return 0


def _to_file(args: argparse.Namespace, spec: FleetSpec) -> int:
    from producers.fleet_csv import write_csv

    rows = args.rows or int((args.duration or 60.0) / spec.interval_s) * spec.rows_a_tick
    start = args.start or datetime.now(UTC)
    try:
        if str(args.out) == "-":
            write_csv(sys.stdout.buffer, spec, rows, start)
            return 0
        with open(args.out, "wb", buffering=1 << 20) as out:
            written = write_csv(out, spec, rows, start)
    except OSError as e:
        raise UsageError(f"--out: {args.out} cannot be written: {e.strerror or e}") from None
    sys.stderr.write(f"{args.out}: {rows:,} rows of {spec.gpus:,} GPUs, {written:,} bytes\n")
    return 0


def _to_broker(args: argparse.Namespace, spec: FleetSpec) -> int:
    # Not needed, and not paid for, where a file is written.
    from producers.status import StreamerStatus
    from producers.supervising import supervise, worker_settings
    from producers.supervisor import Supervisor
    from telemetry.service import Service

    service = Service.from_args("telemetry-streamer", args)
    began_ns = int(args.start.timestamp() * 1e9) if args.start else time.time_ns()
    tasks = list(plan(args, spec, began_ns))
    settings = worker_settings(args)
    supervisor = Supervisor(settings, len(tasks), tasks, log=service.log, duration_s=args.duration)
    title = f"{spec.gpus} simulated GPUs"
    StreamerStatus(service, "simulate", lambda: supervisor.totals, [title], started=time.time_ns())
    ticks = sum(task.ticks * task.spec.rows_a_tick for task in tasks)
    with service:
        return supervise(supervisor, service, settings, ticks or None)


def plan(args: argparse.Namespace, spec: FleetSpec, began_ns: int) -> Iterator[FleetTask]:
    """The fleet's hosts shared out among shards, then among workers; ``--rows`` is rounded up to whole ticks."""
    first, last = share(spec.hosts, *args.shard)
    ticks = -(-args.rows // spec.rows_a_tick) if args.rows else 0
    if args.fast and args.duration and not ticks:
        ticks = max(1, int(args.duration / spec.interval_s))
    workers = min(args.workers, last - first)
    for worker in range(workers):
        start, end = share(last - first, worker, workers)
        yield FleetTask(
            lane=worker,
            spec=replace(spec, hosts=end - start, first_host=first + start),
            batch_rows=batch_rows_for_rate(args.batch_rows, args.rate),
            session=secrets.randbits(64),
            began_ns=began_ns,
            ticks=ticks,
            fast=args.fast,
        )
