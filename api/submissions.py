"""What clients sent: each submission with its id, how far it is, and the answer that a repeat of it gets.

An ``Idempotency-Key`` names a submission: a repeat with the same key gets the same submission back, whatever became
of the first answer; the same key with another body is refused. Submissions are known for a day (KEPT_SECONDS), the
newest KEPT_MAX of them, by the process that took them; with ``--state-dir`` also after its restart.

That no row is stored twice does not rest on this memory. The session of a write or upload with a key follows from key
and content (:func:`session_of`), so the broker itself knows batches that it has, whichever replica sends them (R8).
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash

from api.errors import Problem
from api.times import format_ms
from producers.uploads import Job

KEPT_MAX: Final = 10_000
KEPT_SECONDS: Final = 24 * 3600.0

_SCHEMA: Final = "CREATE TABLE IF NOT EXISTS submissions (id TEXT PRIMARY KEY, created REAL, told TEXT)"


@dataclass
class Submission:
    """One submission. ``state``: received, running, done (all of it durable at the broker), or failed."""

    id: str
    kind: str
    created: float
    key: str = ""
    digest: str = ""
    state: str = "received"
    rows: int = 0
    """Rows published so far."""
    durable_rows: int = 0
    """Rows that the broker has on disk."""
    rejected: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    bytes_total: int = 0
    bytes_read: int = 0
    filename: str = ""
    message: str = ""
    finished: float = 0.0
    receipts: list[tuple[Any, int]] = field(default_factory=list)
    """(receipt, rows) of batches that were not yet known to be durable."""

    def settle(self) -> None:
        """Look which batches have become durable."""
        waiting = [(receipt, rows) for receipt, rows in self.receipts if not receipt.done]
        if len(waiting) != len(self.receipts):
            self.durable_rows += sum(rows for _, rows in self.receipts) - sum(rows for _, rows in waiting)
            self.receipts = waiting
        if self.state == "running" and self.kind == "json" and not waiting:
            self.state, self.finished = "done", time.time()

    def follow(self, job: Job) -> None:
        """Take over how far the upload is."""
        self.state = "received" if job.state == "queued" else job.state
        self.message, self.errors = job.reason, job.errors
        self.rows, self.durable_rows, self.rejected = job.rows_published, job.rows_acked, job.rows_rejected
        self.bytes_read = self.bytes_total if job.state == "done" else job.bytes_read
        self.finished = job.finished_ns / 1e9

    def document(self) -> dict[str, Any]:
        """The submission as the API tells it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "status": self.state,
            "message": self.message,
            "filename": self.filename,
            "created": format_ms(round(self.created * 1000)),
            "finished": format_ms(round(self.finished * 1000)) if self.finished else None,
            "accepted_rows": self.rows,
            "durable_rows": self.durable_rows,
            "rejected_rows": self.rejected,
            "bytes_total": self.bytes_total,
            "bytes_read": self.bytes_read,
            "errors": self.errors,
        }


class Submissions:
    """The submissions of this process, by id and by idempotency key. Thread-safe."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        job_of: Callable[[str], Job | None] = lambda job_id: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``path``: an SQLite file, None to keep them in memory; ``job_of`` finds the job of an upload."""
        self._job_of = job_of
        self._clock = clock
        self._lock = threading.RLock()
        self._by_id: OrderedDict[str, Submission] = OrderedDict()
        self._by_key: dict[str, Submission] = {}
        self._rows_before: dict[str, int] = {"json": 0, "csv": 0}
        """Of submissions that were forgotten, less those of the runs before."""
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_SCHEMA)
        self._load()

    def _load(self) -> None:
        for (told,) in self._db.execute("SELECT told FROM submissions ORDER BY created"):
            found = Submission(**json.loads(told))
            if found.kind == "json" and found.state in ("received", "running"):
                found.state = "failed"
                found.message = "the API ended before the broker confirmed it: send it again under the same key"
            self._by_id[found.id] = found
            if found.key:
                self._by_key[found.key] = found
            self._rows_before[found.kind] -= found.rows

    def begin(self, kind: str, *, key: str = "", digest: str = "", id: str = "") -> tuple[Submission, bool]:
        """(submission, whether it is a new one). A used key with another body is a 422 problem."""
        with self._lock:
            self._forget_old()
            found = self._by_key.get(key) if key else None
            if found is not None:
                if found.digest != digest:
                    raise Problem(422, "this Idempotency-Key was used with another body: take a new key for new data")
                if self._settled(found).state != "failed":
                    return found, False
            made = Submission(id or secrets.token_hex(12), kind, self._clock(), key, digest)
            self._by_id[made.id] = made
            if key:
                self._by_key[key] = made
            self.save(made)
            return made, True

    def save(self, submission: Submission) -> None:
        """Keep what became of it; after each step that a restart must not forget."""
        told = {name: value for name, value in vars(submission).items() if name != "receipts"}  # of this process alone
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO submissions VALUES (?, ?, ?)",
                (submission.id, submission.created, json.dumps(told)),
            )

    def written_rows(self) -> dict[str, int]:
        """Rows handed to the broker since the start, by kind; a counter that never falls."""
        with self._lock:
            found = dict(self._rows_before)
            for submission in self._by_id.values():
                found[submission.kind] += self._settled(submission).rows
            return found

    def drop(self, submission: Submission) -> None:
        """Forget one that came to nothing, so that its key may be tried again."""
        with self._lock:
            self._forget(submission)

    def get(self, submission_id: str) -> Submission:
        """The submission as it is now; a 404 problem if there is none of this id (any more)."""
        with self._lock:
            found = self._by_id.get(submission_id)
            if found is None:
                raise Problem(
                    404, f"no submission {submission_id!r}: ids are known for a day, by the process that gave them"
                )
            return self._settled(found)

    def _settled(self, submission: Submission) -> Submission:
        before = submission.state
        job = self._job_of(submission.id) if submission.kind == "csv" else None
        if job is not None:
            submission.follow(job)
        else:
            submission.settle()
        if submission.state != before:
            self.save(submission)
        return submission

    def _forget(self, submission: Submission) -> None:
        self._by_id.pop(submission.id, None)
        if self._by_key.get(submission.key) is submission:
            del self._by_key[submission.key]
        self._db.execute("DELETE FROM submissions WHERE id = ?", (submission.id,))

    def _forget_old(self) -> None:
        limit = self._clock() - KEPT_SECONDS
        while self._by_id:
            oldest = next(iter(self._by_id.values()))
            if len(self._by_id) < KEPT_MAX and oldest.created > limit:
                return
            self._rows_before[oldest.kind] += self._settled(oldest).rows
            self._forget(oldest)

    def close(self) -> None:
        with self._lock:
            for submission in self._by_id.values():
                self._settled(submission)
            self._db.close()


def digest_of(*parts: bytes | str) -> str:
    """A digest of what a submission holds."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()


def session_of(submission: Submission) -> int | None:
    """The session in which it is published: of key and content where there is a key, else None for any."""
    if not submission.key:
        return None
    return xxhash.xxh64_intdigest(f"{submission.key}/{submission.digest}".encode())
