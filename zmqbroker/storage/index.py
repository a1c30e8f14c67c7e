"""Where each data record of a segment lies: five columns a partition, 28 bytes a record, no Python object a record.

The active segment's index grows in memory. A sealed segment carries its index in its footer, so it is loaded when it is
asked for and dropped again (:class:`IndexCache`): memory stays bounded however much is queued.

Footer, the payload of a record of kind FOOTER that ends the file, followed by 16 bytes of trailer
(``position u64 | CRC32C of those 8 bytes, seeded u32 | 0x464F4F54 u32``):

    4  length of the summary        4  CRC32C of the summary
       the summary, JSON: per partition first, last, records, rows, bytes, oldest and newest time; next offsets; gaps
       for each partition in the summary's order the columns of n records:
       offset u64[n], time_ms u64[n], position u32[n], length u32[n], rows u32[n]
"""

from __future__ import annotations

import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker.storage.interface import KIND_DATA, Gap

COLUMN_TYPES: Final = (("offset", "<u8"), ("time_ms", "<u8"), ("position", "<u4"), ("length", "<u4"), ("rows", "<u4"))
ENTRY_BYTES: Final = sum(np.dtype(kind).itemsize for _, kind in COLUMN_TYPES)
TRAILER: Final = struct.Struct("<QII")
TRAILER_MAGIC: Final = 0x464F4F54
_HEAD: Final = struct.Struct("<II")
_CUT_STEP: Final = 2048


class Columns(NamedTuple):
    """One partition's data records in a segment, in offset order. Arrays of one length; never written again."""

    offset: np.ndarray
    time_ms: np.ndarray
    position: np.ndarray
    length: np.ndarray
    rows: np.ndarray

    def find(self, offset: int) -> int:
        """Index of the first record at or after ``offset``."""
        return int(self.offset.searchsorted(np.uint64(offset)))

    def part(self, start: int, stop: int) -> Columns:
        return Columns(*(column[start:stop] for column in self))

    def fit(self, start: int, stop: int, max_rows: int, max_bytes: int) -> tuple[int, int, int]:
        """How many records from ``start``, before ``stop``, stay within both limits: (count, rows, bytes)."""
        count = rows = size = 0
        step = _CUT_STEP
        while start + count < stop:
            end = min(start + count + step, stop)
            rows_sum = np.cumsum(self.rows[start + count : end], dtype=np.int64)
            size_sum = np.cumsum(self.length[start + count : end], dtype=np.int64)
            fits = int(
                min(rows_sum.searchsorted(max_rows - rows, "right"), size_sum.searchsorted(max_bytes - size, "right"))
            )
            if fits:
                rows += int(rows_sum[fits - 1])
                size += int(size_sum[fits - 1])
                count += fits
            if fits < len(rows_sum):
                break
            step *= 4
        return count, rows, size


EMPTY: Final = Columns(*(np.empty(0, dtype=kind) for _, kind in COLUMN_TYPES))


class GrowingColumns:
    """The active segment's columns of one partition; what :attr:`view` gave stays valid and unchanged."""

    def __init__(self) -> None:
        self._arrays = [np.empty(64, dtype=kind) for _, kind in COLUMN_TYPES]
        self._count = 0
        self.view = EMPTY
        self.rows = 0
        self.bytes = 0

    def extend(self, headers: np.ndarray) -> None:
        count = self._count + len(headers)
        if count > len(self._arrays[0]):
            room = max(count, 2 * len(self._arrays[0]))
            for i, old in enumerate(self._arrays):
                self._arrays[i] = np.empty(room, dtype=old.dtype)
                self._arrays[i][: self._count] = old[: self._count]
        for (name, _), array in zip(COLUMN_TYPES, self._arrays, strict=True):
            array[self._count : count] = headers[name]
        self._count = count
        self.view = Columns(*(array[:count] for array in self._arrays))
        self.rows += int(headers["rows"].sum())
        self.bytes += int(headers["length"].sum())


class PartitionSummary(NamedTuple):
    """What is remembered of one partition in a segment without its columns. Times in ms."""

    first: int
    last: int
    records: int
    rows: int
    bytes: int
    oldest_ms: int
    newest_ms: int


class Summary(NamedTuple):
    """What is remembered of a sealed segment without its index."""

    partitions: dict[int, PartitionSummary]
    next_offsets: list[int]
    """At the end of the segment, for every partition."""
    gaps: list[Gap]

    @property
    def records(self) -> int:
        return sum(p.records for p in self.partitions.values())

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.partitions.values())

    @property
    def oldest_ms(self) -> int | None:
        return min((p.oldest_ms for p in self.partitions.values()), default=None)

    @property
    def newest_ms(self) -> int:
        return max((p.newest_ms for p in self.partitions.values()), default=0)


def summarize(columns: dict[int, Columns], next_offsets: list[int], gaps: list[Gap]) -> Summary:
    partitions = {}
    for partition, c in columns.items():
        if len(c.offset):
            partitions[partition] = PartitionSummary(
                int(c.offset[0]),
                int(c.offset[-1]),
                len(c.offset),
                int(c.rows.sum()),
                int(c.length.sum()),
                int(c.time_ms.min()),
                int(c.time_ms.max()),
            )
    return Summary(partitions, next_offsets, gaps)


def index_headers(headers: np.ndarray) -> dict[int, Columns]:
    """Columns by partition of a segment's headers, in file order; everything but data is left out."""
    data = headers[headers["kind"] == KIND_DATA]
    found = {}
    for partition in np.unique(data["partition"]).tolist():
        mine = data[data["partition"] == partition]
        found[partition] = Columns(*(np.ascontiguousarray(mine[name]) for name, _ in COLUMN_TYPES))
    return found


def encode_footer(columns: dict[int, Columns], summary: Summary) -> bytes:
    text = json.dumps(
        {
            "partitions": {str(p): list(summary.partitions[p]) for p in summary.partitions},
            "next_offsets": summary.next_offsets,
            "gaps": [list(gap) for gap in summary.gaps],
        },
        separators=(",", ":"),
    ).encode()
    parts = [_HEAD.pack(len(text), crc32c(text)), text]
    for partition in summary.partitions:
        parts += [np.ascontiguousarray(column).tobytes() for column in columns[partition]]
    return b"".join(parts)


def decode_summary(start: bytes) -> tuple[Summary, int] | None:
    """From the start of a footer's payload: the summary and where the columns begin. None where it is damaged."""
    if len(start) < _HEAD.size:
        return None
    length, crc = _HEAD.unpack_from(start)
    text = start[_HEAD.size : _HEAD.size + length]
    if len(text) != length or crc32c(text) != crc:
        return None
    found = json.loads(text)
    partitions = {int(p): PartitionSummary(*values) for p, values in found["partitions"].items()}
    return Summary(partitions, found["next_offsets"], [Gap(*gap) for gap in found["gaps"]]), _HEAD.size + length


def decode_columns(payload: bytes) -> dict[int, Columns] | None:
    """The index of a whole footer, whose CRC the caller has checked."""
    found = decode_summary(payload)
    if found is None:
        return None
    summary, at = found
    columns = {}
    for partition, part in summary.partitions.items():
        arrays = []
        for _, kind in COLUMN_TYPES:
            arrays.append(np.frombuffer(payload, dtype=kind, count=part.records, offset=at))
            at += arrays[-1].nbytes
        columns[partition] = Columns(*arrays)
    return columns


class IndexCache:
    """Indexes of sealed segments, the last used kept, up to ``bytes_max``. For any thread."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._found: OrderedDict[int, tuple[dict[int, Columns], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, number: int, load: Callable[[], dict[int, Columns]]) -> dict[int, Columns]:
        with self._lock:
            found = self._found.get(number)
            if found is not None:
                self._found.move_to_end(number)
                return found[0]
        columns = load()
        size = ENTRY_BYTES * sum(len(c.offset) for c in columns.values()) + 1024
        with self._lock:
            if number not in self._found:
                self._found[number] = (columns, size)
                self._bytes += size
            while self._bytes > self._bytes_max and len(self._found) > 1:
                _, (_, old) = self._found.popitem(last=False)
                self._bytes -= old
        return columns

    def forget(self, number: int) -> None:
        with self._lock:
            found = self._found.pop(number, None)
            if found is not None:
                self._bytes -= found[1]


__all__ = [
    "EMPTY", "TRAILER", "TRAILER_MAGIC", "Columns", "GrowingColumns", "IndexCache", "PartitionSummary", "Summary",
    "decode_columns", "decode_summary", "encode_footer", "index_headers", "summarize",
]  # fmt: skip
