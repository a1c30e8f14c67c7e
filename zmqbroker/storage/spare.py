"""The next segment, made ready before it is needed.

A file whose blocks were already written needs no metadata on fdatasync: 0.12 ms instead of 0.20 ms a small commit where
this was measured. So a helper thread allocates the next segment and fills it with zeros, or takes a dropped one. Zeros
are written slowly, and no more once the segment is needed: at full rate they would cost half of the disk's throughput
(measured: 0.4 GB/s against 1.1), and a large commit gains nothing by them.

A file is made under another name and gets its own when its head is durable: a segment's file always has a head.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final, TypeVar

from zmqbroker.storage.filesystem import File, Filesystem
from zmqbroker.storage.segment import SegmentHead, segment_name

log = logging.getLogger(__name__)

PREPARING: Final = "prepare.tmp"
SPARE: Final = "spare"
T = TypeVar("T")
_ZEROS_BYTES: Final = 256 << 10
_ZEROS_PAUSE_S: Final = 0.01
"""With the size above 25 MB/s: a segment of 64 MiB in 2.7 s, and no sync of the log's own waits for much."""


class Inline(Executor):
    """Runs at once, on the caller's thread: for simulation, where order must not depend on a scheduler."""

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def helper_thread() -> Executor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="log-helper")


def reserve_bytes(limit: int) -> int:
    """Kept free in a segment for journal entries when the disk is full (R11)."""
    return min(2 << 20, max(limit // 4, 8192))


def file_bytes(limit: int) -> int:
    """Of a prepared segment: with room for the commit that reaches the limit, and for the reserve."""
    return limit + min(4 << 20, limit // 4) + reserve_bytes(limit)


class SpareSegments:
    """Prepares and recycles files in a log's directory. All but the file work belongs to the writer thread."""

    def __init__(
        self, filesystem: Filesystem, directory: str, helper: Executor, random: Callable[[int], bytes]
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._helper = helper
        self._random = random
        self._next: tuple[int, Future[tuple[SegmentHead, File]]] | None = None
        self._enough = threading.Event()
        self._pause_s = 0.0 if isinstance(helper, Inline) else _ZEROS_PAUSE_S

    def prepare(self, number: int, limit: int) -> None:
        """Begin to make segment ``number``, unless that was begun already."""
        if self._next is not None and self._next[0] == number:
            return
        head = SegmentHead(number, limit, self._random(16))
        self._enough = threading.Event()
        self._next = (number, self._helper.submit(self._make, head, self._enough))

    def take(self, number: int, limit: int) -> tuple[SegmentHead, File]:
        """The segment ``number``, durable, with as many zeros as there was time for.

        Raises OSError: the next call tries again.
        """
        self.prepare(number, limit)
        self._enough.set()
        assert self._next is not None
        future, self._next = self._next[1], None
        return future.result()

    def _make(self, head: SegmentHead, enough: threading.Event) -> tuple[SegmentHead, File]:
        filesystem, directory = self._filesystem, self._directory
        path = f"{directory}/{PREPARING}"
        size = file_bytes(head.limit)
        try:
            filesystem.rename(f"{directory}/{SPARE}", path)
            file = filesystem.open(path)
        except FileNotFoundError:
            file = filesystem.open(path, create=True)
        try:
            have = file.size()
            if have > size:
                file.truncate(size)
            file.allocate(size)
            page = head.encode()
            file.write([page], 0)
            file.sync()
            filesystem.rename(path, f"{directory}/{segment_name(head.number)}")
            filesystem.sync_directory(directory)
        except BaseException:
            file.close()
            filesystem.remove(path)
            raise
        try:
            self._zero(file, max(have, len(page)), size, enough)
        except OSError as error:
            log.warning("could not fill the next segment with zeros; it is used as it is: %s: %s", directory, error)
        return head, file

    def _zero(self, file: File, position: int, end: int, enough: threading.Event) -> None:
        while position < end and not enough.is_set():
            stop = min(position + _ZEROS_BYTES, end)
            file.write_zeros(position, stop)
            position = stop
            if self._pause_s:
                enough.wait(self._pause_s)

    def drop(self, path: str) -> None:
        """Let a segment's file go; one is kept for its blocks."""
        self._helper.submit(self._drop, path)

    def _drop(self, path: str) -> None:
        try:
            spare = f"{self._directory}/{SPARE}"
            if SPARE in self._filesystem.list(self._directory):
                self._filesystem.remove(path)
            else:
                self._filesystem.rename(path, spare)
            # Oldest first and one by one, so that a crash leaves no hole in the row of segments.
            self._filesystem.sync_directory(self._directory)
        except OSError as error:
            log.warning("could not remove a dropped segment; it is tried again at the next start: %s: %s", path, error)

    def close(self) -> None:
        """Wait for the helper, and close a prepared file that nobody took."""
        self._enough.set()
        self._helper.shutdown(wait=True)
        if self._next is not None and self._next[1].exception() is None:
            self._next[1].result()[1].close()
