"""What the broker asks of storage, whatever lies beneath: files (:class:`~zmqbroker.storage.log.DiskLog`), memory
(:class:`~zmqbroker.storage.memory.MemoryLog`), a replicated engine to come. One contract test class runs against all.

Words. A *log* is one topic in one incarnation, named by its uuid. It has *partitions*, each a row of *records* with
strictly rising *offsets*, which the core chooses. Records of every partition, and the core's own *journal*
(control records), share one stream, so one sync makes a whole commit durable. *Synced* means that it survives the
loss of power; only what is synced is ever read (R9).

Threads. ``commit``, ``sync``, ``drop_before`` and ``close`` belong to the writer thread. ``read``, ``cut``,
``find_time`` and ``stats`` may be called from any thread at any time. ``recover`` comes first and once.

What storage does not promise: that offsets are without holes. A record whose payload was bad (VOID), one that an
operator or a full disk dropped, one that the disk lost (GAP) leaves a hole; reads step over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from zmqbroker.protocol import RECORD

__all__ = [
    "CONTROL_PARTITION", "CRC_BY_LOG", "KIND_CONTROL", "KIND_DATA", "KIND_GAP", "KIND_SNAPSHOT", "KIND_VOID", "RECORD",
    "Append", "Chunk", "Commit", "Cut", "Dropped", "Entry", "Gap", "LogStats", "Recovered", "TopicLog",
]  # fmt: skip

KIND_DATA: Final = 1  # a payload at an offset
KIND_CONTROL: Final = 2  # an opaque journal entry of the core
KIND_VOID: Final = 3  # an offset whose payload failed its CRC: no rows, no payload
KIND_GAP: Final = 4  # offsets that are no more: ``offset`` to ``lowest``, both included; the payload is why (UTF-8).
# What a gap covers is not read again, even where its records still lie on disk: so a gap is also how to drop a few.
KIND_SNAPSHOT: Final = 5  # the core's whole state; recovery starts from the latest

CONTROL_PARTITION: Final = 0xFFFF
CRC_BY_LOG: Final = -1
"""Instead of a payload's CRC32C, where it has no sender to compute it (control, gap)."""

Append: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, bytes]
"""(kind, partition, offset, session, seq, lowest, rows, time_ms, crc, payload): one record to write.

``kind`` is DATA, CONTROL or GAP. CONTROL uses partition 0xFFFF and offset 0. ``crc`` is the CRC32C of the payload as
the sender computed it, or -1. Offsets of a partition must rise from one DATA to the next; holes are allowed.
"""


class Commit(NamedTuple):
    """What a commit did."""

    bad: list[int]
    """Indexes of the DATA appends whose payload did not match its CRC; they were written as VOID."""
    bytes_written: int
    sync_seconds: float
    """0.0 where it did not sync."""
    rolled: bool = False
    """The snapshot was taken into a new segment. False, with a snapshot given, where the disk had no room for one."""


class Chunk(NamedTuple):
    """Records of one partition, in offset order."""

    records: np.ndarray
    """dtype :data:`RECORD`; ``length`` cuts ``body``."""
    body: bytes
    """Payloads, one after the other."""
    gaps: tuple[Gap, ...] = ()
    """What this very read found damaged. It is omitted from ``records``; the core should write it down as a GAP."""


class Cut(NamedTuple):
    last: int
    rows: int
    bytes: int


class Gap(NamedTuple):
    """Offsets ``first`` to ``last`` (both included) of a partition are no more."""

    partition: int
    first: int
    last: int
    reason: str


class Dropped(NamedTuple):
    segments: int
    bytes: int
    records: int


class LogStats(NamedTuple):
    bytes: int
    """On disk (in memory, for a memory log), in all."""
    segments: int
    records: int
    """DATA records held."""
    rows: int
    oldest_time_ms: int | None
    """Of the oldest record held."""
    first_offsets: list[int]
    """Of each partition: everything below was dropped. From here on an offset that is missing is a void or a gap."""
    next_offsets: list[int]
    synced_offsets: list[int]
    """Of each partition: everything below is durable and may be read."""
    gaps: int
    """Gaps known."""
    full: bool
    """The last commit of data met a full disk."""
    stopped: bool
    """An fsync failed: nothing is written any more (R11)."""


Entry: TypeAlias = tuple[Literal["control"], bytes] | tuple[Literal["data"], int, np.ndarray]
"""("control", payload), or ("data", partition, records): DATA records in file order, grouped by partition between two
control entries. VOID records are left out: their (session, seq) is not in the log and must not be taken for known."""


class Recovered(NamedTuple):
    snapshot: bytes | None
    entries: Iterator[Entry]
    """What follows the snapshot, in file order. Must be used up before the first commit."""
    next_offsets: list[int]
    """Never lower than any offset that may have been delivered (R10)."""
    clean: bool
    """The log was closed with a snapshot and nothing happened since (a new log is clean)."""
    gaps: list[Gap]
    """Every gap known, those found just now included."""
    torn_bytes: int = 0
    """Length of the unsynced tail that was cut."""
    first_offsets: Sequence[int] = ()
    """As :attr:`LogStats.first_offsets`."""
    journal_damaged: bool = False
    """Control records or a snapshot were lost: whatever may have been delivered is doubtful (R13)."""


class TopicLog(ABC):
    """One topic's records and journal. See the module's head for words, threads and what is not promised."""

    uuid: bytes
    """16 bytes, of this incarnation: a copied or restored directory gets another (R10)."""
    partitions: int

    @property
    @abstractmethod
    def wants_roll(self) -> bool:
        """The active segment is at its limit: the next commit should pass ``roll_snapshot``."""

    @abstractmethod
    def recover(self) -> Recovered:
        """Find out what is there, make it durable, and be ready to commit. Raises :class:`NewerFormat`."""

    @abstractmethod
    def commit(self, appends: Sequence[Append], *, sync: bool = True, roll_snapshot: bytes | None = None) -> Commit:
        """Write ``appends`` in order and (``sync``) make them and all before them durable with one fdatasync.

        With ``roll_snapshot`` the segment is closed first and a new one opened, whose first record is the snapshot.

        Raises :class:`DiskFull`: nothing of this commit is or becomes visible; commits of CONTROL and GAP alone still
        succeed, out of a reserve. Raises :class:`LogStopped` after a failed fsync, now and for ever (R11).
        """

    @abstractmethod
    def sync(self) -> float:
        """Make everything written durable; seconds it took. For the policies ``interval`` and ``never``."""

    @abstractmethod
    def read(self, partition: int, first: int, last: int) -> Chunk:
        """Synced DATA records with ``first <= offset <= last``; voids, gaps and what was dropped are omitted."""

    @abstractmethod
    def cut(self, partition: int, first: int, end: int, max_rows: int, max_bytes: int) -> Cut:
        """The longest range from ``first``, below ``end``, within both limits, though never less than one record.

        Looks at synced records only: ``end`` is taken as no higher than the synced offset. Holes count nothing: the
        range runs up to the record that does not fit, or to ``end - 1``. An empty range has ``last == first - 1``.
        """

    @abstractmethod
    def find_time(self, partition: int, time_ms: int) -> int:
        """The first offset whose record has this time or a later one; the synced offset where there is none."""

    @abstractmethod
    def drop_before(self, floors: Sequence[int], older_than_ms: int, keep_bytes: int | None = None) -> Dropped:
        """Drop the oldest sealed segments, as far as each has every record below its partition's floor and its newest
        record older than ``older_than_ms`` (a time); with ``keep_bytes`` also younger ones, while the log is larger."""

    @abstractmethod
    def stats(self) -> LogStats:
        """Figures for people and gauges; cheap."""

    @abstractmethod
    def close(self, snapshot: bytes) -> None:
        """Write the snapshot, sync, and mark the end as clean. A stopped log is only let go."""
