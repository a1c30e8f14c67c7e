"""The log in memory, for topics with ``storage = memory`` and for tests: the same log over files that are not there.

It keeps the whole contract but for what it is: nothing outlives the process, so every MemoryLog has a uuid of its own
(R10). It is bounded: at ``bytes_max`` a commit of data raises :class:`~zmqbroker.errors.DiskFull`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from zmqbroker.storage.filesystem import Bytes, File, Filesystem, Lock
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.spare import Inline

MEMORY_BYTES_MAX: Final = 256 << 20
_CHUNK: Final = 1 << 18


class _Content:
    """Bytes in chunks that never move, so that readers and the writer need no lock between them."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.size = 0
        self.chunks: dict[int, bytearray] = {}


class MemoryFile(File):
    def __init__(self, filesystem: MemoryFilesystem, content: _Content) -> None:
        self._filesystem = filesystem
        self._content = content

    def write(self, buffers: Sequence[Bytes], position: int) -> None:
        content = self._content
        self.allocate(position + sum(map(len, buffers)))
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                number, at = divmod(position, _CHUNK)
                chunk = content.chunks.get(number)
                if chunk is None:
                    chunk = content.chunks[number] = bytearray(_CHUNK)
                part = view[: _CHUNK - at]
                chunk[at : at + len(part)] = part
                position += len(part)
                view = view[len(part) :]

    def read(self, position: int, length: int) -> bytes:
        content = self._content
        length = max(0, min(length, content.size - position))
        parts = []
        while length:
            number, at = divmod(position, _CHUNK)
            size = min(length, _CHUNK - at)
            chunk = content.chunks.get(number)
            parts.append(bytes(size) if chunk is None else memoryview(chunk)[at : at + size])
            position += size
            length -= size
        return b"".join(parts)

    def write_zeros(self, position: int, end: int) -> None:
        """Memory need not be made ready; what is not written reads as zeros."""
        self.allocate(end)

    def sync(self) -> None:
        pass

    def allocate(self, size: int) -> None:
        if size > self._content.size:
            self._filesystem.charge(size - self._content.size)
            self._content.size = size

    def truncate(self, size: int) -> None:
        self._filesystem.charge(size - self._content.size)
        self._content.size = size
        for number in [n for n in self._content.chunks if n * _CHUNK >= size]:
            del self._content.chunks[number]
        last = self._content.chunks.get(size // _CHUNK)
        if last is not None:
            last[size % _CHUNK :] = bytes(_CHUNK - size % _CHUNK)

    def size(self) -> int:
        return self._content.size

    def inode(self) -> int:
        return self._content.inode

    def close(self) -> None:
        pass


class _MemoryLock(Lock):
    def release(self) -> None:
        pass


class MemoryFilesystem(Filesystem):
    """One flat directory; ``bytes_max`` bytes, then ENOSPC."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_left = bytes_max
        self._files: dict[str, _Content] = {}
        self._inodes = 0
        self._lock = threading.Lock()

    def charge(self, size: int) -> None:
        with self._lock:
            if size > self._bytes_left:
                raise OSError(errno.ENOSPC, "the memory of this topic is used up")
            self._bytes_left -= size

    def open(self, path: str, *, create: bool = False) -> File:
        if create:
            self.remove(path)
            self._inodes += 1
            self._files[path] = _Content(self._inodes)
        content = self._files.get(path)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return MemoryFile(self, content)

    def rename(self, old: str, new: str) -> None:
        if old not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        self.remove(new)
        self._files[new] = self._files.pop(old)

    def remove(self, path: str) -> None:
        content = self._files.pop(path, None)
        if content is not None:
            self.charge(-content.size)

    def list(self, path: str) -> list[str]:
        return sorted(name.rpartition("/")[2] for name in self._files)

    def make_directory(self, path: str) -> None:
        pass

    def sync_directory(self, path: str) -> None:
        pass

    def directory_inode(self, path: str) -> int:
        return 0

    def lock(self, path: str) -> Lock:
        return _MemoryLock()


class MemoryLog(DiskLog):
    """See the module's head. ``bytes_max`` counts whole segments: at least eight of them fit."""

    def __init__(
        self,
        partitions: int,
        *,
        segment_bytes: int = 64 << 20,
        bytes_max: int = MEMORY_BYTES_MAX,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            "memory",
            partitions,
            filesystem=MemoryFilesystem(bytes_max),
            segment_bytes=min(segment_bytes, bytes_max // 8),
            random=random,
            clock=clock,
            helper=Inline(),
        )
