"""The active segment: the one file that is written, and its growing index.

A commit is encoded in one loop (the only code here that runs once a record), written with few system calls, and made
durable with one fdatasync. What readers see moves forward only after that (R9): the headers of a commit wait in
``_unsynced`` until the sync, and are put into the index when somebody asks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker.errors import CorruptLog, DiskFull
from zmqbroker.storage.filesystem import Bytes, File, is_full
from zmqbroker.storage.index import EMPTY, Columns, GrowingColumns, Summary, summarize
from zmqbroker.storage.interface import KIND_DATA, KIND_GAP, KIND_VOID, Append, Gap
from zmqbroker.storage.record import (
    CRC,
    FIELDS,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    PADDING,
    POSITION_MAX,
    encode_header,
    stored_bytes,
)
from zmqbroker.storage.segment import SegmentHead, segment_name

COPY_BYTES_MAX: Final = 4096
"""A longer payload is handed to the kernel where it lies; a shorter one is cheaper to copy than to point at."""
GROW_BYTES: Final = 1 << 20
TRUSTED_BYTES: Final = 16 << 20
"""The tail that is read back without checking payloads again: just checked, just written, still in memory."""
_INDEX_AT: Final = 4096  # headers; more are not left waiting for a reader


class Encoded(NamedTuple):
    buffers: list[Bytes]
    headers: bytes
    size: int
    bad: list[int]
    next_offsets: list[int]
    gaps: list[Gap]
    has_data: bool


class ActiveSegment:
    def __init__(
        self,
        directory: str,
        file: File,
        head: SegmentHead,
        next_offsets: list[int],
        *,
        end: int,
        reserve_bytes: int,
    ) -> None:
        self.path = f"{directory}/{segment_name(head.number)}"
        self.file = file
        self.head = head
        self.end = end
        self.synced = end
        self.size = file.size()
        self.reserve_bytes = reserve_bytes
        self.next_offsets = next_offsets
        """Of everything written, synced or not. The log's writer reads and replaces it."""
        self.synced_offsets = list(next_offsets)
        self.gaps: list[Gap] = []
        self.snapshot_end = 0
        """Where the snapshot that it began with ends; 0 where that is not known (a segment that recovery opened)."""
        self._opened_at = end
        self._columns: dict[int, GrowingColumns] = {}
        self._unsynced: list[bytes] = []
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        return self.head.number

    @property
    def trusted_from(self) -> int:
        """Position from which on payloads need no second check."""
        return max(self._opened_at, self.end - TRUSTED_BYTES)

    def load(self, headers: np.ndarray, gaps: list[Gap]) -> None:
        """Take over what recovery found."""
        self._index(headers)
        self.gaps += gaps

    def encode(self, appends: Sequence[Append]) -> Encoded:
        """Headers, checks and buffers of one commit. Changes nothing. Raises ValueError where an offset goes back."""
        seed = self.head.seed
        synced, position = self.synced, self.end
        pack, pack_crc, header_bytes = FIELDS.pack, CRC.pack, HEADER_BYTES
        next_offsets = list(self.next_offsets)
        buffers: list[Bytes] = []
        small: list[Bytes] = []
        heads: list[bytes] = []
        bad: list[int] = []
        gaps: list[Gap] = []
        has_data = False
        for kind, partition, offset, session, seq, lowest, rows, time_ms, crc, payload in appends:
            length = len(payload)
            actual = crc32c(payload)
            if kind == KIND_DATA:
                if offset < next_offsets[partition]:
                    raise ValueError(f"offset {offset} of partition {partition} is below {next_offsets[partition]}")
                next_offsets[partition] = offset + 1
                has_data = True
                if actual != crc:
                    bad.append(len(heads) >> 1)
                    kind, rows, payload, length, actual = KIND_VOID, 0, b"", 0, 0
            elif kind == KIND_GAP:
                gaps.append(Gap(partition, offset, lowest, bytes(payload).decode("utf-8", "replace")))
                if next_offsets[partition] <= lowest:
                    next_offsets[partition] = lowest + 1
            fields = pack(
                MAGIC, kind, 0, length, actual, partition, 0, rows, offset, session, seq, lowest, time_ms,
                position, synced,
            )  # fmt: skip
            checksum = pack_crc(crc32c(fields, seed))
            heads += (checksum, fields)
            if length <= COPY_BYTES_MAX:
                small += (checksum, fields, payload, PADDING[length & 7])
            else:
                small += (checksum, fields)
                buffers += (b"".join(small), payload)
                small = [PADDING[length & 7]]
            position += (header_bytes + 7 + length) & -8
        if small:
            buffers.append(b"".join(small))
        return Encoded(buffers, b"".join(heads), position - self.end, bad, next_offsets, gaps, has_data)

    def write_single(self, kind: int, payload: bytes, *, flags: int = 0, time_ms: int = 0) -> None:
        """One record of the log's own (snapshot, open), not yet synced. Raises :class:`DiskFull`."""
        size = stored_bytes(len(payload))
        header = encode_header(
            self.head.seed, kind, payload, position=self.end, synced_upto=self.synced, flags=flags, time_ms=time_ms
        )
        self._write([header, payload, PADDING[len(payload) & 7]], size, 0)

    def write(self, encoded: Encoded) -> None:
        """Write one commit. Raises :class:`DiskFull`, and then nothing has changed."""
        self._write(encoded.buffers, encoded.size, self.reserve_bytes if encoded.has_data else 0)
        self.next_offsets = encoded.next_offsets
        self.gaps += encoded.gaps
        self._unsynced.append(encoded.headers)

    def _write(self, buffers: list[Bytes], size: int, leave: int) -> None:
        end = self.end + size
        if end > POSITION_MAX - HEADER_BYTES:
            raise CorruptLog(f"{self.path} has reached 4 GiB: the log was not rolled")
        try:
            if end + leave > self.size:
                # Blocks first: a full disk then shows before anything is written.
                room = -(-(end + leave) // GROW_BYTES) * GROW_BYTES
                try:
                    self.file.allocate(room)
                except OSError as error:
                    if not is_full(error):
                        raise
                    self.file.allocate(room := end + leave)
                self.size = room
            self.file.write(buffers, self.end)
        except OSError as error:
            if not is_full(error):
                raise
            self._take_back(end)
            raise DiskFull(
                f"no space left for {size} bytes in {self.path}: free some, then it goes on by itself"
            ) from error
        self.end = end

    def _take_back(self, end: int) -> None:
        """A part may have been written where the next commit goes: none of its headers may be found there again."""
        if self.size >= end:
            self.file.write([bytes(end - self.end)], self.end)
        else:
            self.file.truncate(max(self.end, self.size))

    def sync(self) -> None:
        """Make everything written durable, then visible."""
        if self.synced == self.end:
            return
        end = self.end
        self.file.sync()
        self.synced = end
        offsets = self.next_offsets
        with self._lock:
            self._waiting += self._unsynced
            self._waiting_bytes += sum(map(len, self._unsynced))
            if self._waiting_bytes > _INDEX_AT * HEADER_BYTES:
                self._take_waiting()
            self.synced_offsets = offsets
        self._unsynced = []

    @property
    def unsynced_bytes(self) -> int:
        return self.end - self.synced

    def columns(self, partition: int) -> Columns:
        """The synced data records of a partition. From any thread."""
        with self._lock:
            if self._waiting:
                self._take_waiting()
            found = self._columns.get(partition)
            return found.view if found else EMPTY

    def all_columns(self) -> dict[int, Columns]:
        with self._lock:
            if self._waiting:
                self._take_waiting()
            return {partition: growing.view for partition, growing in self._columns.items()}

    def summary(self) -> Summary:
        return summarize(self.all_columns(), list(self.synced_offsets), list(self.gaps))

    def totals(self) -> tuple[int, int, int | None]:
        """(data records, rows, oldest time in ms)."""
        columns = self.all_columns()
        oldest = [int(c.time_ms[0]) for c in columns.values() if len(c.time_ms)]
        rows = sum(growing.rows for growing in list(self._columns.values()))
        return sum(len(c.offset) for c in columns.values()), rows, min(oldest, default=None)

    def _take_waiting(self) -> None:
        headers = np.frombuffer(b"".join(self._waiting), dtype=HEADER)
        self._waiting = []
        self._waiting_bytes = 0
        self._index(headers)

    def _index(self, headers: np.ndarray) -> None:
        data = headers[headers["kind"] == KIND_DATA]
        partitions = data["partition"]
        for partition in np.unique(partitions).tolist() if len(data) > 1 else partitions.tolist():
            growing = self._columns.get(partition)
            if growing is None:
                growing = self._columns[partition] = GrowingColumns()
            growing.extend(data[partitions == partition] if len(data) > 1 else data)
