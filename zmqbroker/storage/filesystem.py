"""The few file operations that the log needs, behind an interface, so that tests can put a failing disk beneath it.

Everything that must survive the loss of power is asked for by name (``sync``, ``sync_directory``); nothing else is
promised to survive. A full disk is ``OSError`` with ``ENOSPC`` or ``EDQUOT`` (:func:`is_full`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, TypeAlias

from zmqbroker.errors import DirectoryLocked

Bytes: TypeAlias = bytes | bytearray | memoryview

IOV_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX")) if hasattr(os, "sysconf") else 1024


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class File(ABC):
    """An open file; positions and lengths in bytes."""

    @abstractmethod
    def write(self, buffers: Sequence[Bytes], position: int) -> None:
        """Write all of ``buffers``, one after the other, at ``position``. May have written a part when it raises."""

    @abstractmethod
    def read(self, position: int, length: int) -> bytes:
        """At most ``length`` bytes: fewer only at the end of the file."""

    @abstractmethod
    def sync(self) -> None:
        """Make data and size durable."""

    @abstractmethod
    def allocate(self, size: int) -> None:
        """Reserve blocks up to ``size``; grows the file. Where it raises, nothing has changed that matters."""

    @abstractmethod
    def truncate(self, size: int) -> None: ...

    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def inode(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...

    def write_zeros(self, position: int, end: int) -> None:
        """Zeros from ``position`` up to ``end``, durable: blocks that need no metadata when they are written again."""
        self.write([bytes(end - position)], position)
        self.sync()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Lock(ABC):
    @abstractmethod
    def release(self) -> None: ...


class Filesystem(ABC):
    @abstractmethod
    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; with ``create`` a new, empty file (an old one is emptied)."""

    @abstractmethod
    def rename(self, old: str, new: str) -> None: ...

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file; none there is fine."""

    @abstractmethod
    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; none where there is no directory."""

    @abstractmethod
    def make_directory(self, path: str) -> None: ...

    @abstractmethod
    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""

    @abstractmethod
    def directory_inode(self, path: str) -> int: ...

    @abstractmethod
    def lock(self, path: str) -> Lock:
        """Hold ``path`` for this process alone. Raises :class:`DirectoryLocked`."""

    def read_file(self, path: str) -> bytes | None:
        try:
            file = self.open(path)
        except FileNotFoundError:
            return None
        with file:
            return file.read(0, file.size())

    def write_atomic(self, directory: str, name: str, data: bytes) -> None:
        """Replace a small file: after a crash it holds the old bytes or the new ones, whole."""
        temporary = f"{directory}/{name}.tmp"
        with self.open(temporary, create=True) as file:
            file.write([data], 0)
            file.sync()
        self.rename(temporary, f"{directory}/{name}")
        self.sync_directory(directory)


class OsFile(File):
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, buffers: Sequence[Bytes], position: int) -> None:
        for i in range(0, len(buffers), IOV_MAX):
            part = buffers[i : i + IOV_MAX]
            want = sum(map(len, part))
            done = os.pwritev(self._fd, part, position)
            position += done
            if done < want:  # a signal or a nearly full disk: the rest in one piece, which raises if it must
                rest = memoryview(b"".join(part))[done:]
                while rest:
                    done = os.pwrite(self._fd, rest, position)
                    position += done
                    rest = rest[done:]

    def read(self, position: int, length: int) -> bytes:
        data = os.pread(self._fd, length, position)
        if len(data) == length:
            return data
        parts = [data]
        while data and (length := length - len(data)):
            position += len(data)
            data = os.pread(self._fd, length, position)
            parts.append(data)
        return b"".join(parts)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def allocate(self, size: int) -> None:
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            if self.size() < size:  # a filesystem without it: the zeros that follow allocate
                os.ftruncate(self._fd, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def inode(self) -> int:
        return os.fstat(self._fd).st_ino

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OsLock(Lock):
    """flock on a file that names its holder; the kernel lets go when the process ends, however it ends."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).split(b"\n")[0]
            os.close(self._fd)
            raise DirectoryLocked(os.path.dirname(path), int(holder) if holder.isdigit() else None) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OsFilesystem(Filesystem):
    def open(self, path: str, *, create: bool = False) -> File:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        return OsFile(os.open(path, flags, 0o640))

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def make_directory(self, path: str) -> None:
        """With its parents; the new names are made durable."""
        parent = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            return
        if not os.path.isdir(parent):
            self.make_directory(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o750)
        self.sync_directory(parent)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def directory_inode(self, path: str) -> int:
        return os.stat(path).st_ino

    def lock(self, path: str) -> Lock:
        return OsLock(path)
