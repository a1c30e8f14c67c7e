"""Uploaded files: kept on disk until all of their rows are durable, so that a restart goes on with them.

A job's session, times and cut are written beside the file before a row is sent (R8): a job begun again after a kill
sends the same batches under the same addresses. ``telemetry-streamer serve`` and the API both take files this way.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from producers.blocks import block_count
from producers.errors import SourceError
from producers.lane import REASONS, LaneRun
from producers.run import Run
from producers.source import block_bytes_for, open_source
from producers.supervisor import Totals
from producers.task import LaneTask, Position, WorkerSettings
from zmqbroker.errors import BrokerError

JOBS_KEPT: Final = 1000
"""Finished jobs that can still be asked for."""
ERRORS_TOLD: Final = 100
"""Bad rows that are spelled out; the rest are counted."""


@dataclass(slots=True)
class Job:
    """One upload."""

    id: str
    filename: str
    bytes: int
    session: int
    created_ns: int
    timestamps: str
    batch_rows: int
    state: str = "queued"
    """queued, running, done, failed."""
    reason: str = ""
    rows_published: int = 0
    rows_acked: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    """The first bad rows (line, message, text), where no file takes them all."""
    bytes_read: int = 0
    finished_ns: int = 0

    @property
    def rows_rejected(self) -> int:
        return sum(self.rejected.values())

    def public(self) -> dict[str, Any]:
        """What ``GET /api/v1/csv/uploads/{id}`` tells."""
        return {
            "id": self.id,
            "status": self.state,
            "reason": self.reason,
            "filename": self.filename,
            "bytes": self.bytes,
            "rows_published": self.rows_published,
            "rows_acked": self.rows_acked,
            "rows_rejected": self.rows_rejected,
            "rejected": self.rejected,
            "created": _iso(self.created_ns),
            "finished": _iso(self.finished_ns) if self.finished_ns else None,
        }


class UploadJobs:
    """Threads that play uploaded files to the broker. ``waiting_max`` bounds what is queued: beyond it, come again."""

    def __init__(
        self,
        directory: Path,
        settings: WorkerSettings,
        make_producer: Callable[[int | None, int], Any],
        *,
        threads: int,
        batch_rows: int,
        waiting_max: int,
        log: logging.Logger,
    ) -> None:
        self.directory = directory
        self.totals = Totals(workers_alive=threads)
        self._settings = settings
        self._make_producer = make_producer
        self._batch_rows = batch_rows
        self._waiting_max = waiting_max
        self._log = log
        self._jobs: dict[str, Job] = {}
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"upload-{n}", daemon=True) for n in range(threads)]
        directory.mkdir(parents=True, exist_ok=True)
        self._take_up()

    def has_room(self) -> bool:
        """Whether another upload may come now."""
        with self._lock:
            return sum(job.state in ("queued", "running") for job in self._jobs.values()) < self._waiting_max

    def new_path(self) -> Path:
        """Where to put the bytes of an upload while they come in."""
        return self.directory / f"{secrets.token_hex(8)}.part"

    def submit(self, part: Path, filename: str, timestamps: str, *, session: int | None = None) -> Job:
        """Queue a file that came in whole. Raises :class:`SourceError` if it is no CSV that can be understood.

        ``session``: the same one for the same file makes the same batches, which the broker knows (R8).
        """
        try:
            open_source(str(part))
        except SourceError as e:
            raise SourceError(str(e).replace(str(part), filename)) from None
        session = secrets.randbits(64) if session is None else session
        job = Job(part.stem, filename, part.stat().st_size, session, time.time_ns(), timestamps, self._batch_rows)
        os.replace(part, self._file(job))
        self._write(job)
        with self._lock:
            self._jobs[job.id] = job
            self._forget_old()
            self._enqueue(job)
        return job

    def _enqueue(self, job: Job) -> None:
        self.totals.lanes += 1
        self._queue.put(job)
        # Not before there is work: an API to which nobody uploads has no use for them.
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def get(self, job_id: str) -> Job | None:
        """The job of that id, if it is still known."""
        with self._lock:
            return self._jobs.get(job_id)

    def refresh(self) -> Totals:
        """Totals of all jobs, for health and metrics."""
        with self._lock:
            jobs, runs = list(self._jobs.values()), list(self._runs.values())
        totals = self.totals
        totals.rows_published = sum(job.rows_published for job in jobs)
        totals.rows_acked = sum(job.rows_acked for job in jobs)
        totals.rejected = {}
        for job in jobs:
            for reason, rows in job.rejected.items():
                totals.rejected[reason] = totals.rejected.get(reason, 0) + rows
        totals.lanes_done = sum(job.state == "done" for job in jobs)
        totals.pending_batches = sum(run.publisher.in_flight for run in runs)
        totals.workers_connected = sum(bool(run.publisher.producer.stats.connected) for run in runs)
        return totals

    def close(self, timeout_s: float) -> None:
        """Stop reading; jobs that are not done are taken up by the next start."""
        self._stopping.set()
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.1, until - time.monotonic()))

    def _work(self) -> None:
        while (job := self._queue.get()) is not None and not self._stopping.is_set():
            try:
                self._play(job)
            except (SourceError, BrokerError, OSError) as e:
                self._finish(job, "failed", str(e).replace(str(self._file(job)), job.filename))
            except Exception:
                self._log.exception("an upload failed", extra={"upload": job.id})
                self._finish(job, "failed", "the server failed; its log says why")

    def _play(self, job: Job) -> None:
        job.state = "running"
        source, _ = open_source(str(self._file(job)))
        block_bytes = block_bytes_for(source, job.batch_rows, 1)
        task = LaneTask(
            lane=0,
            source=source,
            block_bytes=block_bytes,
            batch_rows=job.batch_rows,
            first=0,
            last=block_count(source.size, block_bytes) if source.seekable else 0,
            session=job.session,
            start=Position(),
            passes=1,
            interval_s=0.0,
            began_ns=job.created_ns,
            timestamps="now" if source.mapping.timestamp is None else job.timestamps,  # type: ignore[arg-type]
            fixed_now=True,
        )
        producer = self._make_producer(job.session, 1)
        # Where nobody wants a file of all bad rows, the first of them are told with the job.
        rejects = self._settings.rejects or self.directory / f"{job.id}.rejects"
        settings = replace(self._settings, rejects=rejects)
        run = LaneRun(task, settings, producer, stopping=self._stopping, report=lambda run: _told(job, run))
        with self._lock:
            self._runs[job.id] = run
        try:
            finished = run.run()
            left = run.publisher.drain(self._stopping.is_set)
            _told(job, run)
        finally:
            run.close()
            if self._settings.rejects is None:
                job.errors = _bad_rows(rejects)
                rejects.unlink(missing_ok=True)
            producer.close(0 if run.publisher.in_flight else 1)
            with self._lock:
                self._runs.pop(job.id, None)
        if finished and not left:
            self._finish(job, "done", "")
        else:
            job.state = "queued"  # by a stop: the next start takes it up

    def _finish(self, job: Job, state: str, reason: str) -> None:
        job.state, job.reason, job.finished_ns = state, reason, time.time_ns()
        self._log.log(
            logging.INFO if state == "done" else logging.ERROR,
            f"upload {state}",
            extra={"upload": job.id, "file_name": job.filename, "rows": job.rows_acked, "reason": reason},
        )
        self._write(job)
        self._file(job).unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Jobs of an earlier run: unfinished ones are queued again, bytes that never came in whole are removed."""
        for path in self.directory.glob("*.part"):
            path.unlink(missing_ok=True)
        for path in sorted(self.directory.glob("*.json")):
            try:
                job = Job(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
            self._jobs[job.id] = job
            if job.state in ("queued", "running"):
                job.state = "queued"
                self._enqueue(job)

    def _write(self, job: Job) -> None:
        part = self.directory / f"{job.id}.json.new"
        part.write_text(json.dumps(asdict(job)), encoding="utf-8")
        os.replace(part, self.directory / f"{job.id}.json")

    def _file(self, job: Job) -> Path:
        return self.directory / f"{job.id}.csv"

    def _forget_old(self) -> None:
        finished = [job for job in self._jobs.values() if job.state in ("done", "failed")]
        for job in sorted(finished, key=lambda job: job.finished_ns)[: max(0, len(finished) - JOBS_KEPT)]:
            del self._jobs[job.id]
            (self.directory / f"{job.id}.json").unlink(missing_ok=True)


def _told(job: Job, run: Run) -> None:
    job.rows_published = run.publisher.rows_published
    job.rows_acked = run.publisher.rows_acked
    job.rejected = dict(run.rejected)
    job.bytes_read = run.bytes_read


def _bad_rows(path: Path) -> list[dict[str, Any]]:
    """The first bad rows of a rejects file, with line number and reason."""
    found: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in islice(lines, ERRORS_TOLD):
                record = json.loads(line)
                reason = REASONS.get(record["reason"], record["reason"])
                found.append({"line": record["line"], "message": reason, "text": record["text"][:200]})
    except OSError:
        pass
    return found


def _iso(time_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
