"""The rejects file: every bad row, where it stood and why, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from producers.columns import BadLine

TEXT_CHARS_MAX: Final = 2000
FILE_BYTES_MAX: Final = 64 << 20
"""A rejects file beyond this is moved to FILE.1, once: a source of nothing but bad rows must not fill the disk."""


class RejectsFile:
    """Appends to one file; several processes may do so at once, since each row is one short write."""

    def __init__(self, path: Path | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._now = now
        self._fd = -1
        self.lost = 0
        """Rows that could not be written (no space, no permission): they are still counted."""

    def write(self, source: str, first_line: int, data: bytes, bad: Sequence[BadLine]) -> None:
        """Keep the bad lines of a block whose first line has the number ``first_line``."""
        if self._path is None or not bad:
            return
        lines = data.split(b"\n")
        moment = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        parts = []
        for line, reason, column in bad:
            text = lines[line].decode("utf-8", "backslashreplace").rstrip("\r")
            record = {"time": moment, "source": source, "line": first_line + line, "reason": reason}
            if column:
                record["column"] = column
            parts.append(json.dumps(record | {"text": text[:TEXT_CHARS_MAX]}, ensure_ascii=False) + "\n")
        try:
            self._append("".join(parts).encode("utf-8", "replace"))
        except OSError:
            self.lost += len(bad)

    def close(self) -> None:
        """Close the file, if it was ever opened."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        assert self._path is not None
        if self._fd < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        if os.fstat(self._fd).st_size > FILE_BYTES_MAX:
            os.close(self._fd)
            self._fd = -1
            if self._path.exists() and self._path.stat().st_size > FILE_BYTES_MAX:
                os.replace(self._path, self._path.with_name(self._path.name + ".1"))
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.write(self._fd, data)
