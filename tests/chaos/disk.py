"""A disk small enough to be filled: a tmpfs of its own, where this process may mount one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class SmallDisk:
    """``megabytes`` at ``path``. :attr:`mounted` is False where mounting is not allowed: then nothing is filled."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        try:
            self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def fill(self, but: int = 0) -> None:
        """Take every byte that is left; ``but``: leave so many bytes."""
        if not self.mounted:
            return
        if but:
            found = os.statvfs(self.path)
            with self._filler.open("ab") as out:
                os.posix_fallocate(out.fileno(), 0, found.f_bavail * found.f_frsize - but)
            return
        with self._filler.open("ab", buffering=0) as out:
            for size in (1 << 20, 4096):
                try:
                    while out.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        """Give the bytes back."""
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount; what held files there must have ended."""
        if self.mounted:
            subprocess.run(["umount", str(self.path)], capture_output=True)
            self.mounted = False
