"""What the commands that run worker processes share: their settings, the progress line, and how a run ends."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Final

from producers.supervisor import Supervisor, Totals
from producers.task import WorkerSettings
from telemetry.options import UsageError
from telemetry.progress import ProgressLine
from telemetry.service import Service
from zmqbroker.client.options import keys_from

UNACKED_EXIT_CODE: Final = 1


def worker_settings(args: argparse.Namespace) -> WorkerSettings:
    """What all workers of a run share, by its options."""
    return WorkerSettings(
        url=args.connect,
        topic=args.topic,
        rate=args.rate,
        compression=args.compression,
        rejects=getattr(args, "rejects", None) or state_dir(args) / "rejects.ndjson",
        strict=getattr(args, "strict", False),
        drain_timeout_s=args.drain_timeout,
        ends_ns=0,
        producer=args.producer,
        log_level=args.log_level,
        log_format=args.log_format,
        keys=keys_from(args),
    )


def state_dir(args: argparse.Namespace) -> Path:
    """Where a streamer keeps what must outlive it."""
    if args.state_dir is not None:
        return args.state_dir
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(home) / "telemetry-streamer"


def supervise(supervisor: Supervisor, service: Service, settings: WorkerSettings, total: int | None) -> int:
    """Run to the end, showing progress; the exit code. Raises :class:`UsageError` where a source is at fault."""
    with ProgressLine("streaming", total, log=service.log) as line:

        def stopping() -> bool:
            totals = supervisor.totals
            line.update(totals.rows_acked, **_notes(totals))
            return service.stopping.is_set()

        totals = supervisor.run(stopping)
        line.update(totals.rows_acked)
    return _finish(supervisor, totals, settings, service.log)


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
