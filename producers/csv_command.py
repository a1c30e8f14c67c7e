"""``telemetry-streamer csv``: files (or standard input) to the broker."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator

from producers.errors import SourceError
from producers.pacing import batch_rows_for_rate
from producers.source import Source, block_bytes_for, expand, lanes_of, open_source
from producers.status import StreamerStatus
from producers.supervising import supervise, worker_settings
from producers.supervisor import Supervisor
from producers.task import LaneTask, Position
from telemetry.options import UsageError
from telemetry.service import Service


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
    settings = worker_settings(args, began_ns)
    lanes = list(plan(args, sources, began_ns))
    workers = max(1, min(args.workers, len(lanes)))
    supervisor = Supervisor(settings, workers, lanes, log=service.log)
    StreamerStatus(service, "csv", lambda: supervisor.totals, [source.path for source in sources], started=began_ns)
    total = None if args.loop else sum(expected_rows(source, args.shard) for source in sources) or None
    return supervise(supervisor, service, settings, total)


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
