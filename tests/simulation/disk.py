"""A disk that fails under a seed: what was not synced may be lost, torn or reordered by the loss of power.

What it models. Writes go to a cache that reads see. ``sync`` moves a file's cache to the platter; at a loss of power
each dirty sector of 512 bytes, and each new size, has reached the platter or has not, by chance and one by one. Names
are made durable by ``sync_directory``; at a loss of power the first few of the pending changes of names hold.
A failed sync marks what was dirty as clean without writing it, as Linux does: to try again would seem to succeed.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

from zmqbroker.errors import DirectoryLocked
from zmqbroker.storage.filesystem import Bytes, File, Filesystem, Lock

SECTOR = 512


class Inode:
    def __init__(self, number: int) -> None:
        self.number = number
        self.cache = bytearray()
        self.platter = bytearray()
        self.dirty: set[int] = set()

    def lose_power(self, chance: random.Random, survival: float) -> None:
        if len(self.cache) != len(self.platter):
            # A size reaches the platter with the first of its data or not at all.
            if chance.random() < survival:
                del self.platter[len(self.cache) :]
                self.platter.extend(bytes(len(self.cache) - len(self.platter)))
        for sector in sorted(self.dirty):
            start = sector * SECTOR
            if chance.random() < survival:
                part = self.cache[start : min(start + SECTOR, len(self.platter))]
                self.platter[start : start + len(part)] = part
        self.cache = bytearray(self.platter)
        self.dirty.clear()


class SimulatedFile(File):
    def __init__(self, disk: SimulatedDisk, inode: Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write(self, buffers: Sequence[Bytes], position: int) -> None:
        data = b"".join(buffers)
        self._disk.steps += 1
        if self._inode in self._disk.write_fails:
            self._disk.write_fails.discard(self._inode)
            raise OSError(errno.EIO, "simulated write error")
        grow = position + len(data) - len(self._inode.cache)
        if grow > self._disk.free_bytes:
            fits = max(0, len(data) - grow + max(0, self._disk.free_bytes))
            self._put(data[: self._disk.chance.randint(0, fits)], position)
            raise OSError(errno.ENOSPC, "simulated full disk")
        self._put(data, position)

    def _put(self, data: bytes, position: int) -> None:
        cache = self._inode.cache
        if position + len(data) > len(cache):
            cache.extend(bytes(position + len(data) - len(cache)))
        cache[position : position + len(data)] = data
        self._inode.dirty.update(range(position // SECTOR, (position + len(data) + SECTOR - 1) // SECTOR))

    def read(self, position: int, length: int) -> bytes:
        return bytes(self._inode.cache[position : position + length])

    def sync(self) -> None:
        self._disk.steps += 1
        if self._inode in self._disk.sync_fails:
            self._disk.sync_fails.discard(self._inode)
            self._inode.dirty.clear()
            raise OSError(errno.EIO, "simulated sync error")
        inode = self._inode
        if len(inode.cache) != len(inode.platter):
            del inode.platter[len(inode.cache) :]
            inode.platter.extend(bytes(len(inode.cache) - len(inode.platter)))
        for sector in inode.dirty:
            start = sector * SECTOR
            inode.platter[start : start + SECTOR] = inode.cache[start : start + SECTOR]
        inode.dirty.clear()

    def allocate(self, size: int) -> None:
        grow = size - len(self._inode.cache)
        if grow > self._disk.free_bytes:
            raise OSError(errno.ENOSPC, "simulated full disk")
        if grow > 0:
            self._inode.cache.extend(bytes(grow))

    def truncate(self, size: int) -> None:
        cache = self._inode.cache
        del cache[size:]
        cache.extend(bytes(size - len(cache)))
        self._inode.dirty = {s for s in self._inode.dirty if s * SECTOR < size}
        if size % SECTOR:
            self._inode.dirty.add(size // SECTOR)

    def size(self) -> int:
        return len(self._inode.cache)

    def inode(self) -> int:
        return self._inode.number

    def close(self) -> None:
        pass


class SimulatedLock(Lock):
    def __init__(self, disk: SimulatedDisk, path: str) -> None:
        self._disk = disk
        self._path = path
        if path in disk.locks:
            raise DirectoryLocked(path, None)
        disk.locks.add(path)

    def release(self) -> None:
        self._disk.locks.discard(self._path)


class SimulatedDisk(Filesystem):
    """One directory of files. ``survival`` is the chance of each unsynced sector to survive a loss of power."""

    def __init__(self, seed: int, *, capacity: int = 1 << 30, survival: float = 0.5) -> None:
        self.chance = random.Random(seed)
        self.capacity = capacity
        self.survival = survival
        self.sync_fails: set[Inode] = set()
        self.write_fails: set[Inode] = set()
        self.steps = 0
        self.locks: set[str] = set()
        self._inodes = 0
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._pending: list[tuple[str, str, Inode | None]] = []
        self._directory_inode = 1_000_000

    @property
    def free_bytes(self) -> int:
        return self.capacity - sum(len(inode.cache) for inode in set(self._names.values()))

    # -- what happens to a disk

    def kill(self) -> None:
        """The process dies; the machine lives on, and so does its cache."""
        self.locks.clear()
        self.sync_fails.clear()
        self.write_fails.clear()

    def lose_power(self) -> None:
        self.kill()
        holds = self.chance.randint(0, len(self._pending))
        for operation in self._pending[:holds]:
            self._apply(self._durable_names, operation)
        self._pending.clear()
        self._names = dict(self._durable_names)
        for inode in {id(i): i for i in self._names.values()}.values():
            inode.lose_power(self.chance, self.survival)

    def fail_sync(self, path: str) -> None:
        """The next sync of this file fails, and what was dirty is forgotten."""
        self.sync_fails.add(self._names[path])

    def fail_write(self, path: str) -> None:
        """The next write to this file fails."""
        self.write_fails.add(self._names[path])

    def platter(self, path: str) -> bytes:
        """What a file holds durably."""
        return bytes(self._names[path].platter)

    def flip_bit(self, path: str, position: int, bit: int = 0, *, cached: bool = True) -> None:
        """On the platter; in the cache too, or not, where the page is still in memory as it was written."""
        inode = self._names[path]
        for content in (inode.cache, inode.platter) if cached else (inode.platter,):
            if position < len(content):
                content[position] ^= 1 << bit

    def cut_file(self, path: str, size: int) -> None:
        inode = self._names[path]
        del inode.cache[size:]
        del inode.platter[size:]

    def copy(self, seed: int) -> SimulatedDisk:
        """As a backup tool would: same names and bytes, other inodes."""
        other = SimulatedDisk(seed, capacity=self.capacity, survival=self.survival)
        other._inodes = self._inodes + 100
        other._directory_inode = self._directory_inode + 1
        for name, inode in self._names.items():
            with other.open(name, create=True) as file:
                file.write([bytes(inode.cache)], 0)
                file.sync()
        other.sync_directory("")
        return other

    def paths(self) -> list[str]:
        return sorted(self._names)

    # -- Filesystem

    def open(self, path: str, *, create: bool = False) -> File:
        if create:
            self._inodes += 1
            self._change("link", path, Inode(self._inodes))
        inode = self._names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return SimulatedFile(self, inode)

    def rename(self, old: str, new: str) -> None:
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        self._change("rename", f"{old}\n{new}", self._names[old])

    def remove(self, path: str) -> None:
        if path in self._names:
            self._change("unlink", path, None)

    def _change(self, kind: str, path: str, inode: Inode | None) -> None:
        self.steps += 1
        operation = (kind, path, inode)
        self._apply(self._names, operation)
        self._pending.append(operation)

    @staticmethod
    def _apply(names: dict[str, Inode], operation: tuple[str, str, Inode | None]) -> None:
        kind, path, inode = operation
        if kind == "link":
            assert inode is not None
            names[path] = inode
        elif kind == "rename":
            old, new = path.split("\n")
            assert inode is not None
            names.pop(old, None)
            names[new] = inode
        else:
            names.pop(path, None)

    def list(self, path: str) -> list[str]:
        return sorted(name.rpartition("/")[2] for name in self._names)

    def make_directory(self, path: str) -> None:
        pass

    def sync_directory(self, path: str) -> None:
        self.steps += 1
        self._durable_names = dict(self._names)
        self._pending.clear()

    def directory_inode(self, path: str) -> int:
        return self._directory_inode

    def lock(self, path: str) -> Lock:
        return SimulatedLock(self, path)
