"""A topic's log in files: the writer's side of :class:`~zmqbroker.storage.interface.TopicLog`.

    identity.json      uuid, and the inodes it belongs to          identity.py
    LOCK               held by the one process that has it open    filesystem.py
    0000000007.log     sealed: records and a footer                segment.py, index.py
    0000000008.log     active: the only one that is written        active.py
    0000000009.log     prepared: a head and zeros                  spare.py
    spare              a dropped one, kept for its blocks          spare.py
    0000000003.bad     a file that could not be understood, kept for people

Recovery reads footers, and scans the active segment alone (opening.py, recovery.py). ``docs/storage-format.md`` has
every byte.

The state that readers use is the tuple of sealed segments and the active one, replaced as a whole and never changed in
place; everything else belongs to the writer thread, which a lock keeps to one at a time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final

import numpy as np

from zmqbroker.errors import DiskFull, LogStopped
from zmqbroker.storage.active import ActiveSegment
from zmqbroker.storage.filesystem import Filesystem, OsFilesystem, is_full
from zmqbroker.storage.identity import claim_identity
from zmqbroker.storage.index import EMPTY, Columns, IndexCache, index_headers
from zmqbroker.storage.interface import (
    KIND_SNAPSHOT,
    RECORD,
    Append,
    Chunk,
    Commit,
    Cut,
    Dropped,
    Gap,
    LogStats,
    Recovered,
    TopicLog,
)
from zmqbroker.storage.opening import open_log
from zmqbroker.storage.record import FLAG_CLEAN
from zmqbroker.storage.recovery import interpret, scan
from zmqbroker.storage.segment import PAGE_BYTES, Segment, pack_snapshot, read_index, read_records, write_footer
from zmqbroker.storage.spare import SpareSegments, helper_thread, reserve_bytes

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 64 << 20
FIRST_SEGMENT_BYTES: Final = 4 << 20
"""A log's first segment, so that a topic that is hardly used costs little; each next one may be four times as large."""
INDEX_CACHE_BYTES: Final = 16 << 20
"""570,000 records: for batches of 1,000 rows the index of half a billion rows."""
_FULL_PROBE_SECONDS: Final = 1.0
_EVER: Final = (1 << 63) - 1
"""Above every offset."""


class _Sealed(Segment):
    """A sealed segment; its index stays in memory until its footer is written."""

    held: dict[int, Columns] | None = None


class DiskLog(TopicLog):
    """See the interface for the contract. ``clock`` gives seconds, monotonic; ``random`` gives n random bytes."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        partitions: int,
        *,
        filesystem: Filesystem | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        index_cache_bytes: int = INDEX_CACHE_BYTES,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        helper: Executor | None = None,
    ) -> None:
        """Take the directory. Raises :class:`DirectoryLocked`."""
        if not 1 <= partitions < 0xFFFF:
            raise ValueError(f"a topic has 1 to 65,534 partitions, not {partitions}")
        self.directory = os.fspath(directory)
        self.partitions = partitions
        self._filesystem = filesystem or OsFilesystem()
        self._segment_bytes = segment_bytes
        self._random = random
        self._clock = clock
        self._filesystem.make_directory(self.directory)
        self._dirlock = self._filesystem.lock(f"{self.directory}/LOCK")
        try:
            holds_log = any(name.endswith(".log") for name in self._filesystem.list(self.directory))
            self.uuid = claim_identity(self._filesystem, self.directory, holds_log=holds_log, random=random)
        except BaseException:
            self._dirlock.release()
            raise
        self._helper = helper or helper_thread()
        self._spares = SpareSegments(self._filesystem, self.directory, self._helper, random)
        self._cache = IndexCache(index_cache_bytes)
        self._lock = threading.RLock()
        self._state: tuple[tuple[_Sealed, ...], ActiveSegment] | None = None
        self._first_offsets = [0] * partitions
        self._gaps: dict[tuple[int, int], Gap] = {}
        self._news: dict[tuple[int, int], Gap] = {}
        """Gaps found since the log was opened that no GAP record tells yet; reads hand them out until one does."""
        self._stopped: str | None = None
        self._full = False
        self._full_until = 0.0

    # -- opening and closing

    def recover(self) -> Recovered:
        if self._state is not None:
            raise RuntimeError("recover() was called before")
        first_limit = min(self._segment_bytes, FIRST_SEGMENT_BYTES)
        try:
            found = open_log(self._filesystem, self.directory, self.partitions, self._spares, first_limit)
        except OSError as error:
            if is_full(error):
                raise DiskFull(f"no space to open the log {self.directory}: free some, then start again") from error
            raise
        sealed = tuple(
            _Sealed(self._filesystem, self.directory, part.head, part.summary, part.size) for part in found.sealed
        )
        for gap in found.gaps:
            self._gaps[gap.partition, gap.first] = gap
        self._state = (sealed, found.active)
        self._first_offsets = self._padded(found.first_offsets or self._first_held(sealed, found.active))
        return Recovered(
            found.snapshot,
            found.entries,
            list(found.active.next_offsets),
            found.clean,
            found.gaps,
            found.torn_bytes,
            list(self._first_offsets),
            found.journal_damaged,
        )

    def close(self, snapshot: bytes) -> None:
        with self._lock:
            try:
                if self._state is not None and self._stopped is None:
                    _, active = self._state
                    try:
                        active.sync()
                        last = pack_snapshot(active.next_offsets, snapshot)
                        active.write_single(KIND_SNAPSHOT, last, flags=FLAG_CLEAN)
                        active.sync()
                    except DiskFull:
                        log.warning(
                            "no space for the closing snapshot: the next start replays the journal: %s", self.directory
                        )
                    except OSError as error:
                        self._stop(error)
            finally:
                self.release()

    def release(self) -> None:
        """Let everything go and write nothing: what a kill leaves, but for the lock."""
        with self._lock:
            self._spares.close()
            if self._state is not None:
                self._state[1].file.close()
            self._stopped = self._stopped or "it was closed"
            self._dirlock.release()

    @property
    def active_path(self) -> str:
        """The file that is written now, for tools and tests."""
        return self._opened()[1].path

    # -- writing

    @property
    def wants_roll(self) -> bool:
        _, active = self._opened()
        # At least as much as the snapshot must have followed it: a snapshot above the limit would else roll for ever.
        enough = max(active.head.limit, 2 * active.snapshot_end)
        return active.end >= enough and self._clock() >= self._full_until

    def commit(self, appends: Sequence[Append], *, sync: bool = True, roll_snapshot: bytes | None = None) -> Commit:
        with self._lock:
            self._check()
            try:
                rolled = roll_snapshot is not None and self._roll(roll_snapshot)
                _, active = self._opened()
                encoded = active.encode(appends)
                try:
                    if encoded.size:
                        active.write(encoded)
                except DiskFull:
                    self._full = True
                    raise
                if encoded.has_data:
                    self._full = False
                for gap in encoded.gaps:
                    self._gaps[gap.partition, gap.first] = gap
                    self._news.pop((gap.partition, gap.first), None)
                if active.end * 2 >= active.head.limit and self._clock() >= self._full_until:
                    self._spares.prepare(active.number + 1, self._next_limit(active))
                seconds = self._sync(active) if sync else 0.0
            except OSError as error:
                raise self._stop(error) from error
            return Commit(encoded.bad, encoded.size, seconds, rolled)

    def sync(self) -> float:
        with self._lock:
            self._check()
            try:
                return self._sync(self._opened()[1])
            except OSError as error:
                raise self._stop(error) from error

    def _sync(self, active: ActiveSegment) -> float:
        start = self._clock()
        active.sync()
        return self._clock() - start

    def _roll(self, snapshot: bytes) -> bool:
        """Begin the next segment with ``snapshot``. False where the disk has no room for one: the old one goes on."""
        sealed, old = self._opened()
        old.sync()
        try:
            head, file = self._spares.take(old.number + 1, self._next_limit(old))
        except OSError as error:
            # Nothing of the log proper was touched, whatever it was; a disk that fails will show in it soon enough.
            self._full_until = self._clock() + _FULL_PROBE_SECONDS
            log.warning("no next segment could be made, the present one goes on: %s: %s", self.directory, error)
            return False
        active = ActiveSegment(
            self.directory, file, head, old.next_offsets, end=PAGE_BYTES, reserve_bytes=reserve_bytes(head.limit)
        )
        try:
            active.write_single(KIND_SNAPSHOT, pack_snapshot(old.next_offsets, snapshot))
            active.sync()
            active.snapshot_end = active.end
        except DiskFull:
            # A file with a snapshot would be taken for the active one: it must be gone before the old one goes on.
            file.close()
            self._filesystem.remove(active.path)
            self._filesystem.sync_directory(self.directory)
            self._full_until = self._clock() + _FULL_PROBE_SECONDS
            return False
        done = _Sealed(self._filesystem, self.directory, old.head, old.summary(), old.size)
        done.held = old.all_columns()
        self._state = ((*sealed, done), active)
        self._helper.submit(self._seal, done, old)
        return True

    def _seal(self, segment: _Sealed, old: ActiveSegment) -> None:
        """On the helper thread. A footer is only an index: without one the segment is scanned when it is needed."""
        try:
            held = segment.held
            assert held is not None
            segment.size = write_footer(old.file, segment.head, old.end, held, segment.summary)
        except OSError as error:
            log.warning("could not write the footer of a sealed segment; it will be scanned: %s: %s", old.path, error)
        finally:
            old.file.close()
            segment.held = None

    def _next_limit(self, active: ActiveSegment) -> int:
        return min(self._segment_bytes, 4 * active.head.limit)

    def _opened(self) -> tuple[tuple[_Sealed, ...], ActiveSegment]:
        state = self._state
        if state is None:
            raise RuntimeError("recover() comes first")
        return state

    def _check(self) -> None:
        if self._stopped is not None:
            raise LogStopped(f"the log {self.directory} has stopped: {self._stopped}")

    def _stop(self, error: OSError) -> LogStopped:
        """After a failed write or sync nobody knows what is on disk, and a second fsync would lie (R11)."""
        self._stopped = f"{error}; check the disk, then restart"
        log.error("the log stopped and takes nothing more: %s: %s", self.directory, error)
        return LogStopped(f"the log {self.directory} has stopped: {self._stopped}")

    def drop_before(self, floors: Sequence[int], older_than_ms: int, keep_bytes: int | None = None) -> Dropped:
        with self._lock:
            sealed, active = self._opened()
            total = self._bytes(sealed, active)
            count = freed = records = 0
            for segment in sealed:
                parts = segment.summary.partitions
                if any(p >= len(floors) or part.last >= floors[p] for p, part in parts.items()):
                    break
                young = segment.summary.newest_ms >= older_than_ms
                if young and (keep_bytes is None or total - freed <= keep_bytes):
                    break
                count += 1
                freed += segment.size
                records += segment.summary.records
            if count:
                self._state = (sealed[count:], active)
                firsts = self._first_offsets = self._padded(sealed[count - 1].summary.next_offsets)
                for key, gap in list(self._gaps.items()):
                    if gap.partition < len(firsts) and gap.last < firsts[gap.partition]:
                        del self._gaps[key]
                for segment in sealed[:count]:
                    self._cache.forget(segment.number)
                    self._spares.drop(segment.path)
            return Dropped(count, freed, records)

    # -- reading, from any thread

    def read(self, partition: int, first: int, last: int) -> Chunk:
        sealed, active = self._opened()
        parts: list[np.ndarray] = []
        payloads: list[memoryview] = []
        gaps: list[Gap] = []
        for segment in _overlapping(sealed, partition, first, last):
            columns = self._held(self._index(segment).get(partition, EMPTY), partition, first, last)
            self._read_part(segment, columns, partition, parts, payloads, gaps)
        columns = self._held(active.columns(partition), partition, first, last)
        self._read_part(active, columns, partition, parts, payloads, gaps)
        if self._news:
            news = [
                g for g in list(self._news.values()) if g.partition == partition and g.first <= last and g.last >= first
            ]
            gaps += [gap for gap in news if gap not in gaps]
        if not parts:
            return Chunk(np.empty(0, dtype=RECORD), b"", tuple(gaps))
        return Chunk(np.concatenate(parts) if len(parts) > 1 else parts[0], b"".join(payloads), tuple(gaps))

    def _read_part(
        self,
        segment: _Sealed | ActiveSegment,
        columns: Columns,
        partition: int,
        parts: list[np.ndarray],
        payloads: list[memoryview],
        gaps: list[Gap],
    ) -> None:
        if not len(columns.offset):
            return
        trusted_from = segment.trusted_from if isinstance(segment, ActiveSegment) else 1 << 62
        try:
            with self._filesystem.open(segment.path) as file:
                read = read_records(file, segment.head.seed, columns, trusted_from=trusted_from)
        except FileNotFoundError:
            if self._is_dropped(segment.number):
                return
            raise
        if read.damaged and self._is_dropped(segment.number):
            return  # its file was recycled while it was read
        parts.append(read.records)
        payloads += read.payloads
        for offset in read.damaged:
            if (partition, offset) not in self._gaps:
                gaps.append(Gap(partition, offset, offset, "what was read from disk is not what was written"))

    def _is_dropped(self, number: int) -> bool:
        sealed, active = self._opened()
        return number < (sealed[0].number if sealed else active.number)

    def cut(self, partition: int, first: int, end: int, max_rows: int, max_bytes: int) -> Cut:
        sealed, active = self._opened()
        end = min(end, active.synced_offsets[partition])
        rows = size = count = 0
        for columns in self._columns(sealed, active, partition, first, end - 1):
            held = len(columns.offset)
            if not held:
                continue
            fits, more_rows, more_size = columns.fit(0, held, max_rows - rows, max_bytes - size)
            if not fits and not count:
                fits, more_rows, more_size = 1, int(columns.rows[0]), int(columns.length[0])
            count += fits
            rows += more_rows
            size += more_size
            if fits < held:
                return Cut(int(columns.offset[fits]) - 1, rows, size)
        return Cut(max(end, first) - 1, rows, size)

    def find_time(self, partition: int, time_ms: int) -> int:
        sealed, active = self._opened()
        synced = active.synced_offsets[partition]
        for segment in sealed:
            part = segment.summary.partitions.get(partition)
            if part is not None and part.newest_ms >= time_ms:
                columns = self._held(self._index(segment)[partition], partition, 0, _EVER)
                late = columns.time_ms >= time_ms
                if late.any():
                    return int(columns.offset[int(late.argmax())])
        columns = self._held(active.columns(partition), partition, 0, _EVER)
        late = columns.time_ms >= time_ms
        return int(columns.offset[int(late.argmax())]) if late.any() else synced

    def stats(self) -> LogStats:
        sealed, active = self._opened()
        records, rows, oldest = active.totals()
        times = [t for t in (*(s.summary.oldest_ms for s in sealed), oldest) if t is not None]
        return LogStats(
            self._bytes(sealed, active),
            len(sealed) + 1,
            records + sum(s.summary.records for s in sealed),
            rows + sum(s.summary.rows for s in sealed),
            min(times, default=None),
            list(self._first_offsets),
            list(active.next_offsets),
            list(active.synced_offsets),
            len(self._gaps),
            self._full,
            self._stopped is not None,
        )

    def _first_held(self, sealed: tuple[_Sealed, ...], active: ActiveSegment) -> list[int]:
        """For want of what the oldest file's first record tells: the first record of each partition that is there."""
        firsts = []
        for partition in range(self.partitions):
            parts = (s.summary.partitions.get(partition) for s in sealed)
            first = next((part.first for part in parts if part is not None), None)
            if first is None:
                held = active.columns(partition).offset
                first = int(held[0]) if len(held) else active.synced_offsets[partition]
            firsts.append(first)
        return firsts

    def _padded(self, offsets: Sequence[int]) -> list[int]:
        """One for each partition: the topic may have had fewer when they were written."""
        return [*offsets, *[0] * (self.partitions - len(offsets))]

    @staticmethod
    def _bytes(sealed: tuple[_Sealed, ...], active: ActiveSegment) -> int:
        return sum(s.size for s in sealed) + active.size

    def _columns(
        self, sealed: tuple[_Sealed, ...], active: ActiveSegment, partition: int, first: int, last: int
    ) -> Iterator[Columns]:
        for segment in _overlapping(sealed, partition, first, last):
            yield self._held(self._index(segment)[partition], partition, first, last)
        yield self._held(active.columns(partition), partition, first, last)

    def _held(self, columns: Columns, partition: int, first: int, last: int) -> Columns:
        """From ``first`` to ``last``, without what a gap has declared to be no more."""
        columns = columns.part(columns.find(first), columns.find(last + 1))
        if not self._gaps:
            return columns
        keep: np.ndarray | None = None
        for gap in list(self._gaps.values()):
            if gap.partition == partition and gap.first <= last and gap.last >= first:
                start, stop = columns.find(gap.first), columns.find(gap.last + 1)
                if start < stop:
                    keep = np.ones(len(columns.offset), dtype=bool) if keep is None else keep
                    keep[start:stop] = False
        return columns if keep is None else Columns(*(column[keep] for column in columns))

    def _index(self, segment: _Sealed) -> dict[int, Columns]:
        held = segment.held
        return held if held is not None else self._cache.get(segment.number, lambda: self._load_index(segment))

    def _load_index(self, segment: _Sealed) -> dict[int, Columns]:
        try:
            with self._filesystem.open(segment.path) as file:
                columns = read_index(file, segment.head)
                if columns is None:
                    columns = self._scan_sealed(segment, file.read(0, file.size()))
        except FileNotFoundError:
            columns = {}
        return {p: columns.get(p, EMPTY) for p in segment.summary.partitions}

    def _scan_sealed(self, segment: _Sealed, data: bytes) -> dict[int, Columns]:
        """The index of a segment whose footer is damaged; what else is damaged there is news to be told by reads."""
        log.warning("a footer is damaged; its segment is scanned: %s", segment.path)
        found = scan(data, segment.head.seed, sealed=True)
        for gap in interpret(data, found, None, self.partitions, then=segment.summary.next_offsets).gaps:
            self._news[gap.partition, gap.first] = gap
        return index_headers(found.headers)


def _overlapping(sealed: tuple[_Sealed, ...], partition: int, first: int, last: int) -> Iterator[_Sealed]:
    for segment in sealed:
        part = segment.summary.partitions.get(partition)
        if part is not None and part.last >= first:
            if part.first > last:
                return
            yield segment
