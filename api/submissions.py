"""What clients sent: each submission with its id, how far it is, and the answer that a repeat of it gets.

An ``Idempotency-Key`` names a submission: a repeat with the same key gets the same submission back, whatever became
of the first answer; the same key with another body is refused. Submissions live in this process, the newest
KEPT_MAX of them for KEPT_SECONDS.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from api.errors import Problem
from api.times import format_ms

KEPT_MAX: Final = 10_000
KEPT_SECONDS: Final = 24 * 3600.0


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
            self.finish("done")

    def finish(self, state: str, message: str = "") -> None:
        self.state, self.message, self.finished = state, message, time.time()
        if state == "done":
            self.bytes_read = self.bytes_total

    def document(self) -> dict[str, Any]:
        """The submission as the API tells it."""
        self.settle()
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

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._by_id: OrderedDict[str, Submission] = OrderedDict()
        self._by_key: dict[str, Submission] = {}
        self._forgotten_rows: dict[str, int] = {"json": 0, "csv": 0}

    def begin(self, kind: str, *, key: str = "", digest: str = "") -> tuple[Submission, bool]:
        """(submission, whether it is a new one). A used key with another body is a 422 problem."""
        with self._lock:
            self._forget_old()
            found = self._by_key.get(key) if key else None
            if found is not None and found.state != "refused":
                if found.digest != digest:
                    raise Problem(422, "this Idempotency-Key was used with another body: take a new key for new data")
                return found, False
            made = Submission(secrets.token_hex(12), kind, self._clock(), key, digest)
            self._by_id[made.id] = made
            if key:
                self._by_key[key] = made
            return made, True

    def written_rows(self) -> dict[str, int]:
        """Rows handed to the broker since the start, by kind; a counter that never falls."""
        with self._lock:
            found = dict(self._forgotten_rows)
            for submission in self._by_id.values():
                found[submission.kind] = found.get(submission.kind, 0) + submission.rows
            return found

    def drop(self, submission: Submission) -> None:
        """Forget one that came to nothing, so that its key may be tried again."""
        with self._lock:
            self._by_id.pop(submission.id, None)
            if self._by_key.get(submission.key) is submission:
                del self._by_key[submission.key]

    def get(self, submission_id: str) -> Submission:
        """The submission; a 404 problem if there is none of this id (any more)."""
        with self._lock:
            found = self._by_id.get(submission_id)
        if found is None:
            raise Problem(
                404, f"no submission {submission_id!r}: ids are known for a day, by the process that gave them"
            )
        return found

    def _forget_old(self) -> None:
        limit = self._clock() - KEPT_SECONDS
        while self._by_id:
            oldest = next(iter(self._by_id.values()))
            if len(self._by_id) < KEPT_MAX and oldest.created > limit:
                return
            del self._by_id[oldest.id]
            self._forgotten_rows[oldest.kind] += oldest.rows
            self._by_key.pop(oldest.key, None)


def digest_of(*parts: bytes | str) -> str:
    """A digest of what a submission holds."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()
