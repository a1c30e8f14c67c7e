"""``telemetry-streamer csv``: files (or standard input) to the broker."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from producers.errors import SourceError
from producers.following import Following, Kept, Mark, find
from producers.pacing import batch_rows_for_rate
from producers.resume import LaneState, RunState, hold, open_run
from producers.source import Source, block_bytes_for, expand, lanes_of, open_source
from producers.status import StreamerStatus
from producers.supervising import state_dir, supervise, worker_settings
from producers.supervisor import Supervisor
from producers.task import LaneTask, Position, Report, Task
from telemetry.options import UsageError
from telemetry.service import Service


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code. Raises :class:`UsageError` for what the caller must change."""
    sources = _open_all(args)
    if args.explain:
        for source in sources:
            sys.stdout.write(f"{source.name}\n{source.mapping.explain()}\n")
        return 0
    args.loop = args.loop or args.interval > 0
    if args.loop and any(source.once for source in sources):
        raise UsageError("--loop: a pipe can be read only once; name a file")
    if args.timestamps != "now" and (bare := [s.path for s in sources if s.mapping.timestamp is None]):
        raise UsageError(f"--timestamps {args.timestamps}: {bare[0]} has no time column; use --timestamps now")
    if args.resume and any(source.once for source in sources):
        raise UsageError("--resume: a pipe cannot be read again; name a file")
    if args.resume and args.loop and not args.interval:
        raise UsageError("--resume with --loop needs --interval, which gives each pass its time")
    if args.follow and (args.loop or args.shard != (0, 1)):
        raise UsageError("--follow goes with neither --loop, --interval nor --shard")
    if args.follow and not all(source.seekable for source in sources):
        raise UsageError("--follow: only plain files can be followed; a pipe is read to its end without it")
    return _stream(args, sources, Service.from_args("telemetry-streamer", args))


def _open_all(args: argparse.Namespace) -> list[Source]:
    try:
        names = expand(args.files)
        return [open_source(name, map_file=args.map, exporter_version=args.exporter_version)[0] for name in names]
    except SourceError as e:
        raise UsageError(str(e)) from None


def _stream(args: argparse.Namespace, sources: list[Source], service: Service) -> int:
    began_ns = time.time_ns()
    settings = worker_settings(args)
    with ExitStack() as stack:
        progress: Progress | None = None
        if args.follow:
            lanes = [follow_plan(args, source, number, began_ns, stack) for number, source in enumerate(sources)]
        elif args.resume:
            runs = [stack.enter_context(closing(_resumed(args, source, began_ns))) for source in sources]
            lanes, progress = resumed_plan(args, sources, runs)
        else:
            lanes = list(plan(args, sources, began_ns))
        if not lanes:
            service.log.info("nothing is left to send", extra={"files": [source.name for source in sources]})
            return 0
        workers = len(lanes) if args.follow else max(1, min(args.workers, len(lanes)))
        keep = progress.keep if progress is not None else lambda task, report: None
        supervisor = Supervisor(settings, workers, lanes, log=service.log, duration_s=args.duration, on_report=keep)
        StreamerStatus(service, "csv", lambda: supervisor.totals, [source.name for source in sources], started=began_ns)
        total = (
            None if args.loop or args.follow else sum(expected_rows(source, args.shard) for source in sources) or None
        )
        try:
            # Listening comes last: nobody finds it ready before its checks are there.
            with service:
                return supervise(supervisor, service, settings, total)
        finally:
            if progress is not None:
                progress.save()


def plan(args: argparse.Namespace, sources: list[Source], began_ns: int) -> Iterator[LaneTask]:
    """Lanes for all files: each file is cut into as many as there are workers (a stream is one lane)."""
    number = 0
    for source in sources:
        cut = cut_for(args, source, began_ns)
        for first, last in cut.pop("spans"):
            yield LaneTask(
                lane=number,
                source=source,
                first=first,
                last=last,
                session=secrets.randbits(64),
                start=Position(0, first),
                passes=0 if args.loop else 1,
                fixed_now=False,
                **cut,
            )
            number += 1


def cut_for(args: argparse.Namespace, source: Source, began_ns: int) -> dict[str, Any]:
    """How a file is cut into lanes and batches: what must not change while a run over it goes on."""
    block_bytes = block_bytes_for(source, args.batch_rows, args.workers * args.shard[1])
    return {
        "block_bytes": block_bytes,
        "batch_rows": batch_rows_for_rate(args.batch_rows, args.rate),
        "spans": lanes_of(source, block_bytes, args.workers, args.shard),
        "began_ns": began_ns,
        "interval_s": args.interval,
        "timestamps": args.timestamps,
    }


def follow_plan(args: argparse.Namespace, source: Source, number: int, began_ns: int, stack: ExitStack) -> LaneTask:
    """The lane of a growing file, which has no end to share out: from its beginning, or where --resume left it."""
    with open(source.path, "rb") as f:
        mark = Mark.of(f.fileno(), source.sample_bytes)
    cut = cut_for(args, source, began_ns)
    del cut["spans"]
    lane = LaneTask(
        lane=number,
        source=source,
        first=0,
        last=0,
        session=secrets.randbits(64),
        start=Position(0, source.data_start),
        passes=1,
        fixed_now=False,
        following=Following(mark),
        **cut,
    )
    if not args.resume:
        return lane
    key = hashlib.blake2b(f"{os.path.abspath(source.path)}\0{args.pass_}".encode(), digest_size=16).hexdigest()
    path = state_dir(args) / "resume" / f"{key}.follow"
    stack.callback(os.close, hold(path.with_suffix(".lock"), source.path))
    lane = replace(lane, following=Following(mark, keep_in=path))
    return followed_before(lane, Kept.load(path), path) if path.exists() else lane


def followed_before(lane: LaneTask, kept: Kept, path: Path) -> LaneTask:
    """Where an earlier run came to; ``lane`` itself where the file it was in is not there any more."""
    source = lane.source
    name = find(source.path, kept.mark, kept.end)
    if name is None:
        logging.getLogger(__name__).warning(
            "the file that was followed is not there any more; what was not sent of it is left out",
            extra={"file": source.path, "sent_bytes": kept.position[1]},
        )
        return lane
    version = source.mapping.exporter_version
    source = open_source(name, map_file=source.map_file, exporter_version=version, sample_bytes=kept.mark.sample_bytes)[
        0
    ]
    if source.mapping.digest.hex() != kept.mapping:
        raise UsageError(
            f"{lane.source.path}: its mapping has changed since --resume began with it; "
            f"name a new pass (--pass NAME) to send it whole, or remove {path}"
        )
    return replace(
        lane,
        source=replace(source, path=lane.source.path, origin_ns=kept.origin_ns),
        session=kept.session,
        start=Position(*kept.position),
        batch_rows=kept.batch_rows,
        timestamps=kept.timestamps,
        began_ns=kept.began_ns,
        following=Following(kept.mark, kept.cuts, path),
    )


def _resumed(args: argparse.Namespace, source: Source, began_ns: int) -> RunState:
    return open_run(
        state_dir(args) / "resume",
        source,
        pass_name=args.pass_,
        shard=args.shard,
        make_plan=lambda: cut_for(args, source, began_ns),
    )


PLANNED = ("block_bytes", "batch_rows", "began_ns", "interval_s", "timestamps")


class Progress:
    """Writes down how far resumed runs are, at most twice a second each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._state_of: dict[int, tuple[RunState, LaneState]] = {}
        self._saved_at: dict[Path, float] = {}
        self._clock = clock

    def add(self, lane: int, run: RunState, state: LaneState) -> None:
        """Lane number ``lane`` is this session of this run."""
        self._state_of[lane] = (run, state)

    def keep(self, task: Task, report: Report) -> None:
        """A worker has told how far it is."""
        run, state = self._state_of[task.lane]
        state.position = report.position
        state.done = report.done
        if report.ended or self._clock() - self._saved_at.get(run.path, 0.0) >= 0.5:
            self._saved_at[run.path] = self._clock()
            run.save()

    def save(self) -> None:
        """Write all."""
        for run in {run.path: run for run, _ in self._state_of.values()}.values():
            run.save()


def resumed_plan(
    args: argparse.Namespace, sources: list[Source], runs: list[RunState]
) -> tuple[list[LaneTask], Progress]:
    """The lanes of resumed runs that are not done, as they were planned when each run began."""
    progress = Progress()
    lanes = []
    for source, run in zip(sources, runs, strict=True):
        for state in run.lanes:
            if state.done:
                continue
            lane = LaneTask(
                lane=len(lanes),
                source=source,
                first=state.first,
                last=state.last,
                session=state.session,
                start=state.position,
                passes=0 if args.loop else 1,
                fixed_now=True,
                **{name: run.plan[name] for name in PLANNED},
            )
            progress.add(lane.lane, run, state)
            lanes.append(lane)
    return lanes, progress


def expected_rows(source: Source, shard: tuple[int, int]) -> int:
    """About how many rows this shard of a file has, by the length of its first ones; 0 where that is unknown."""
    if not source.seekable:
        return 0
    return int((source.size - source.data_start) / source.row_bytes * source.rows_a_line / shard[1])
