"""Uploaded CSV files: the streamers' own jobs, with the API's broker and directory."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Final

from api.broker import Broker
from producers.task import WorkerSettings
from producers.uploads import UploadJobs

log = logging.getLogger(__name__)

WORKERS: Final = 2
WAITING_MAX: Final = 50
BATCH_ROWS: Final = 5_000
DRAIN_SECONDS: Final = 60.0


def open_jobs(broker: Broker, state_dir: Path | None) -> UploadJobs:
    """Jobs that outlive a restart in ``state_dir``; without one, in a directory that goes with the process."""
    directory = state_dir / "uploads" if state_dir is not None else Path(tempfile.mkdtemp(prefix="telemetry-upload-"))
    if state_dir is None:
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    settings = WorkerSettings(
        url=broker.url,
        topic=broker.topic,
        rate=0,
        compression="lz4",
        rejects=None,
        strict=False,
        drain_timeout_s=DRAIN_SECONDS,
        ends_ns=0,
    )
    return UploadJobs(
        directory,
        settings,
        lambda session, first_seq: broker.new_producer(session, first_seq),
        threads=WORKERS,
        batch_rows=BATCH_ROWS,
        waiting_max=WAITING_MAX,
        log=log,
    )
