"""``telemetry-streamer csv``: files (or standard input) to the broker."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from producers.errors import SourceError
from producers.pacing import batch_rows_for_rate
from producers.source import Source, block_bytes_for, expand, lanes_of, open_source
from producers.status import StreamerStatus
from producers.supervisor import Supervisor, Totals
from producers.task import LaneTask, Position, WorkerSettings
from telemetry.options import UsageError
from telemetry.progress import ProgressLine
from telemetry.service import Service

UNACKED_EXIT_CODE = 1


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code. Raises :class:`UsageError` for what the caller must change."""
    sources = _open_all(args)
    if args.explain:
        for source in sources:
            sys.stdout.write(f"{source.path}\n{source.mapping.explain()}\n")
        return 0
    args.loop = args.loop or args.interval > 0
    if args.loop and any(source.path == "-" for source in sources):
        raise UsageError("--loop: standard input can be read only once; name a file")
    if args.timestamps != "now" and (bare := [s.path for s in sources if s.mapping.timestamp is None]):
        raise UsageError(f"--timestamps {args.timestamps}: {bare[0]} has no time column; use --timestamps now")
    service = Service.from_args("telemetry-streamer", args)
    with service:
        return _stream(args, sources, service)


def _open_all(args: argparse.Namespace) -> list[Source]:
    try:
        names = expand(args.files)
        return [open_source(name, map_file=args.map, exporter_version=args.exporter_version)[0] for name in names]
    except SourceError as e:
        raise UsageError(str(e)) from None


def _stream(args: argparse.Namespace, sources: list[Source], service: Service) -> int:
    began_ns = time.time_ns()
    settings = WorkerSettings(
        url=args.connect,
        topic=args.topic,
        rate=args.rate,
        compression=args.compression,
        rejects=args.rejects or state_dir(args) / "rejects.ndjson",
        strict=args.strict,
        drain_timeout_s=args.drain_timeout,
        ends_ns=began_ns + int(args.duration * 1e9) if args.duration else 0,
        producer=args.producer,
        log_level=args.log_level,
        log_format=args.log_format,
    )
    lanes = list(plan(args, sources, began_ns))
    workers = max(1, min(args.workers, len(lanes)))
    supervisor = Supervisor(settings, workers, lanes, log=service.log)
    StreamerStatus(service, "csv", lambda: supervisor.totals, [source.path for source in sources], started=began_ns)
    total = None if args.loop else sum(expected_rows(source, args.shard) for source in sources) or None
    with ProgressLine("streaming", total, log=service.log) as line:

        def stopping() -> bool:
            totals = supervisor.totals
            line.update(totals.rows_acked, **_notes(totals))
            return service.stopping.is_set()

        totals = supervisor.run(stopping)
        line.update(totals.rows_acked)
    return _finish(supervisor, totals, settings, service.log)


def plan(args: argparse.Namespace, sources: list[Source], began_ns: int) -> Iterator[LaneTask]:
    """Lanes for all files: each file is cut into as many as there are workers (a stream is one lane)."""
    batch_rows = batch_rows_for_rate(args.batch_rows, args.rate)
    number = 0
    for source in sources:
        block_bytes = block_bytes_for(source, args.batch_rows, args.workers * args.shard[1])
        for first, last in lanes_of(source, block_bytes, args.workers, args.shard):
            yield LaneTask(
                lane=number,
                source=source,
                block_bytes=block_bytes,
                batch_rows=batch_rows,
                first=first,
                last=last,
                session=secrets.randbits(64),
                start=Position(0, first),
                passes=0 if args.loop else 1,
                interval_s=args.interval,
                began_ns=began_ns,
                timestamps=args.timestamps,
                fixed_now=False,
            )
            number += 1


def expected_rows(source: Source, shard: tuple[int, int]) -> int:
    """About how many rows this shard of a file has, by the length of its first ones; 0 where that is unknown."""
    if not source.seekable:
        return 0
    return int((source.size - source.data_start) / source.row_bytes * source.rows_a_line / shard[1])


def state_dir(args: argparse.Namespace) -> Path:
    """Where a streamer keeps what must outlive it."""
    if args.state_dir is not None:
        return args.state_dir
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(home) / "telemetry-streamer"


def _notes(totals: Totals) -> dict[str, object]:
    notes: dict[str, object] = {}
    if totals.rows_rejected:
        notes["rejected"] = totals.rows_rejected
    if totals.pending_batches:
        notes["pending_batches"] = totals.pending_batches
    if totals.workers_alive and not totals.workers_connected:
        notes["waiting_for"] = "broker"
    return notes


def _finish(supervisor: Supervisor, totals: Totals, settings: WorkerSettings, log: logging.Logger) -> int:
    if totals.rows_rejected:
        log.warning(
            "bad rows were left out",
            extra={"rows": totals.rows_rejected, **totals.rejected, "kept_in": str(settings.rejects)},
        )
    if supervisor.failure is not None:
        raise UsageError(supervisor.failure)
    summary = {"rows": totals.rows_acked, "batches": totals.batches_acked, "passes": totals.passes}
    if totals.unacked_batches:
        log.error(
            "ended with batches that nobody has acknowledged; they may or may not be stored",
            extra=summary | {"unacked_batches": totals.unacked_batches},
        )
        return UNACKED_EXIT_CODE
    log.info("all acknowledged", extra=summary)
    return 0
