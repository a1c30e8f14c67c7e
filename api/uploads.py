"""Uploaded CSV files: kept as a temporary file, then read by the streamers' own parser and published in a session of
their own, in the background.

The session follows from the Idempotency-Key where there is one, and the batches from the file alone: the same file
under the same key makes the same batches, which the broker knows, even if the API was restarted in between (R8).
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import xxhash

from api.broker import Broker
from api.errors import BrokerAway
from api.submissions import Submission
from producers.blocks import block_count
from producers.errors import SourceError
from producers.lane import REASONS, LaneRun
from producers.pacing import TimestampPolicy
from producers.source import block_bytes_for, open_source
from producers.task import LaneTask, Position, WorkerSettings
from zmqbroker.errors import BrokerError

log = logging.getLogger(__name__)

WORKERS: Final = 2
WAITING_MAX: Final = 50
BATCH_ROWS: Final = 5_000
BLOCK_BYTES: Final = 1 << 20
"""Fixed: blocks, and so batches, must come out the same when the same file is sent again."""
ERRORS_TOLD: Final = 100
DRAIN_SECONDS: Final = 60.0


class Uploads:
    """Threads that publish uploaded files. ``directory`` holds files while they wait; None = the system's own."""

    def __init__(self, broker: Broker, directory: Path | None = None) -> None:
        self._broker = broker
        self._directory = tempfile.TemporaryDirectory(prefix="telemetry-upload-", dir=directory)
        self._waiting: queue.Queue[tuple[Submission, Path, TimestampPolicy]] = queue.Queue(WAITING_MAX)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def new_file(self) -> Path:
        """Where to put an upload."""
        return Path(self._directory.name) / f"{secrets.token_hex(8)}.csv"

    def check(self, path: Path, filename: str) -> None:
        """Raise :class:`SourceError` unless the file begins as a CSV whose columns are understood."""
        try:
            open_source(str(path))
        except SourceError as error:
            raise SourceError(str(error).replace(str(path), filename or "the file")) from None

    def submit(self, submission: Submission, path: Path, timestamps: TimestampPolicy) -> None:
        """Queue a file that was received whole; a 503 problem if too many wait."""
        self._start_threads()
        try:
            self._waiting.put_nowait((submission, path, timestamps))
        except queue.Full:
            path.unlink(missing_ok=True)
            raise BrokerAway(f"{WAITING_MAX} uploads wait already: try again later") from None

    def close(self) -> None:
        """Stop reading; what was published goes on to the broker for a moment."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2.0)
        self._directory.cleanup()

    def _start_threads(self) -> None:
        with self._lock:
            if not self._threads:
                for number in range(WORKERS):
                    thread = threading.Thread(target=self._work, name=f"upload-{number}", daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                submission, path, timestamps = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            try:
                self._publish(submission, path, timestamps)
            except (SourceError, BrokerError, OSError) as error:
                submission.finish("failed", str(error).replace(str(path), submission.filename or "the file"))
            except Exception as error:
                log.exception("an upload failed", extra={"upload": submission.id})
                submission.finish("failed", f"the server failed: {type(error).__name__}; its log says why")
            finally:
                path.unlink(missing_ok=True)

    def _publish(self, submission: Submission, path: Path, timestamps: TimestampPolicy) -> None:
        submission.state = "running"
        source, _ = open_source(str(path))
        block_bytes = min(BLOCK_BYTES, block_bytes_for(source, BATCH_ROWS, 1))
        named = f"{submission.key}/{submission.digest}".encode()
        session = xxhash.xxh64_intdigest(named) if submission.key else secrets.randbits(64)
        task = LaneTask(
            lane=0,
            source=source,
            block_bytes=block_bytes,
            batch_rows=BATCH_ROWS,
            first=0,
            last=block_count(source.size, block_bytes) if source.seekable else 0,
            session=session,
            start=Position(),
            passes=1,
            interval_s=0,
            began_ns=round(submission.created * 1e9),
            timestamps=timestamps,
            fixed_now=True,
        )
        rejects = path.with_suffix(".rejects")
        settings = WorkerSettings(
            url=self._broker.url,
            topic=self._broker.topic,
            rate=0,
            compression="lz4",
            rejects=rejects,
            strict=False,
            drain_timeout_s=DRAIN_SECONDS,
            ends_ns=0,
        )
        producer = self._broker.new_producer(session)
        run = LaneRun(task, settings, producer, stopping=self._stopping, report=lambda lane: _told(submission, lane))
        try:
            finished = run.run()
            deadline = time.monotonic() + DRAIN_SECONDS
            left = run.publisher.drain(lambda: self._stopping.is_set() or time.monotonic() > deadline)
        finally:
            run.close()
            producer.close(0.5)
            _told(submission, run)
            submission.errors = _bad_rows(rejects)
            rejects.unlink(missing_ok=True)
        if finished and not left:
            submission.finish("done")
        else:
            reason = "the API stopped" if self._stopping.is_set() else "the broker did not confirm all of it in time"
            submission.finish("failed", f"{reason}: send the file again under the same Idempotency-Key")


def _told(submission: Submission, run: LaneRun) -> None:
    submission.rows = run.publisher.rows_published
    submission.durable_rows = run.publisher.rows_acked
    submission.rejected = sum(run.rejected.values())
    submission.bytes_read = run.bytes_read


def _bad_rows(path: Path) -> list[dict[str, Any]]:
    """The first bad rows, with line number and reason."""
    found: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                reason = REASONS.get(record["reason"], record["reason"])
                found.append({"line": record["line"], "message": reason, "text": record["text"][:200]})
                if len(found) >= ERRORS_TOLD:
                    break
    except OSError:
        pass
    return found
