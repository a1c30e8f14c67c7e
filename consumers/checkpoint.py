"""The archive's checkpoint: one file that says what the archive holds. What it does not say does not count.

A commit writes the data first, then this file (write, fsync, rename, fsync of the directory), then acknowledges.
A crash before the rename leaves data that the next start removes; a crash after it leaves an acknowledgement that
the next delivery of the range makes good, because its offsets are in here. So every row is in the archive once.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumers.offsets import Offsets
from telemetry.options import UsageError

VERSION = 1
NAME = "_checkpoint.json"


@dataclass
class Checkpoint:
    """``offsets`` by "log uuid/partition". ``pending`` and ``lengths`` belong to the formats."""

    format: str
    commits: int = 0
    rows: int = 0
    offsets: dict[str, Offsets] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    """Files of the last commit, below the staging directory, that may still have to be moved into place."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Bytes of each appended file that count."""

    def partition(self, log_uuid: str, partition: int) -> Offsets:
        return self.offsets.setdefault(f"{log_uuid}/{partition}", Offsets())

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "format": self.format,
            "commits": self.commits,
            "rows": self.rows,
            "offsets": {key: offsets.ranges() for key, offsets in self.offsets.items()},
            "pending": self.pending,
            "lengths": self.lengths,
        }


class Directory:
    """The archive's directory: one process at a time, and the checkpoint in it."""

    def __init__(self, path: Path, format: str) -> None:
        """Raises :class:`UsageError` for a directory that cannot be used, is held, or has another format."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "_lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise UsageError(f"--out {path}: {e.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(f"--out {path}: another archive process writes there; stop it or choose another") from None
        try:
            self.checkpoint = self._read(format)
        except UsageError:
            self.close()
            raise

    def _read(self, format: str) -> Checkpoint:
        file = self.path / NAME
        if not file.exists():
            return Checkpoint(format)
        try:
            data = json.loads(file.read_bytes())
            found = Checkpoint(
                data["format"],
                data["commits"],
                data["rows"],
                {key: Offsets(ranges) for key, ranges in data["offsets"].items()},
                data["pending"],
                data["lengths"],
            )
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise UsageError(f"{file} cannot be read ({e!r}); restore it, or choose an empty --out") from None
        if found.format != format:
            raise UsageError(f"--out {self.path} holds a {found.format} archive; choose another for --format {format}")
        return found

    def write(self) -> None:
        """Make the checkpoint durable: from here on it counts."""
        temporary = self.path / f"{NAME}.tmp"
        with temporary.open("wb") as out:
            out.write(json.dumps(self.checkpoint.to_json(), separators=(",", ":")).encode())
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self.path / NAME)
        sync_directory(self.path)

    def close(self) -> None:
        os.close(self._lock)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
