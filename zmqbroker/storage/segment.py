"""A segment: one file of the log. Its head is one 4,096-byte page, records follow, and once sealed a footer ends it.

    offset size field
         0    8 magic           "ZQBLOG1\\n"
         8    4 version         1
        12    4 limit           bytes after which the log wants the next segment
        16    8 number          of the segment, in its name too
        24   16 incarnation     random: seeds every CRC of this file, so that stale bytes of a recycled one never count
        40    4 crc             CRC32C of bytes 0..40
      2048      the same again, in another sector: without it no record can be told from stale bytes

In every version to come magic, version and the checksum stay where they are, so that each can tell a newer file from a
damaged one.

The first record of a segment is a SNAPSHOT, or an OPEN record where the log is new or was rebuilt. The payload of
both begins with a preamble (:func:`pack_snapshot`): the next offset of every partition, which must outlive the records
themselves (R10).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker.errors import NewerFormat
from zmqbroker.storage.filesystem import File, Filesystem
from zmqbroker.storage.index import (
    TRAILER,
    TRAILER_MAGIC,
    Columns,
    Summary,
    decode_columns,
    decode_summary,
    encode_footer,
)
from zmqbroker.storage.record import (
    HEADER_BYTES,
    KIND_FOOTER,
    as_records,
    encode_header,
    gather_headers,
    stored_bytes,
    valid_headers,
)

PAGE_BYTES: Final = 4096
_COPY_AT: Final = 2048
_MAGIC: Final = b"ZQBLOG1\n"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sIIQ16s")
_CRC: Final = struct.Struct("<I")
_SNAPSHOT: Final = struct.Struct("<HH")

READ_GAP_BYTES: Final = 32 << 10
"""Reading this much in vain costs about as much as another system call."""
READ_BYTES_MAX: Final = 8 << 20
SUMMARY_BYTES: Final = 16 << 10
"""The first read of a footer: a summary seldom is longer."""


def segment_name(number: int) -> str:
    return f"{number:010d}.log"


class SegmentHead(NamedTuple):
    number: int
    limit: int
    incarnation: bytes

    @property
    def seed(self) -> int:
        return crc32c(self.incarnation)

    def encode(self) -> bytes:
        head = _HEAD.pack(_MAGIC, _VERSION, self.limit, self.number, self.incarnation)
        head += _CRC.pack(crc32c(head))
        return head.ljust(_COPY_AT, b"\0") + head.ljust(PAGE_BYTES - _COPY_AT, b"\0")

    @staticmethod
    def decode(page: bytes, path: str) -> SegmentHead | None:
        """From the first page of the file ``path``; None where both copies are damaged. Raises :class:`NewerFormat`."""
        for at in (0, _COPY_AT):
            head = page[at : at + _HEAD.size]
            if len(page) >= at + _HEAD.size + _CRC.size and _CRC.unpack_from(page, at + _HEAD.size)[0] == crc32c(head):
                magic, version, limit, number, incarnation = _HEAD.unpack(head)
                if magic == _MAGIC and version == _VERSION:
                    return SegmentHead(number, limit, incarnation)
                if magic == _MAGIC and version > _VERSION:
                    raise NewerFormat(path, version, _VERSION)
        return None


def pack_snapshot(next_offsets: list[int], snapshot: bytes) -> bytes:
    """``1 u16 | partitions u16 | next offsets u64[partitions] | the core's snapshot``"""
    return b"".join((_SNAPSHOT.pack(1, len(next_offsets)), np.array(next_offsets, dtype="<u8").tobytes(), snapshot))


def unpack_snapshot(payload: bytes) -> tuple[list[int], bytes]:
    _, partitions = _SNAPSHOT.unpack_from(payload)
    end = _SNAPSHOT.size + 8 * partitions
    return np.frombuffer(payload[_SNAPSHOT.size : end], dtype="<u8").tolist(), payload[end:]


class Segment:
    """A sealed segment: never written again. Files are opened for each read, so that none stays open."""

    def __init__(self, filesystem: Filesystem, directory: str, head: SegmentHead, summary: Summary, size: int) -> None:
        self.filesystem = filesystem
        self.path = f"{directory}/{segment_name(head.number)}"
        self.head = head
        self.summary = summary
        self.size = size

    @property
    def number(self) -> int:
        return self.head.number


def write_footer(file: File, head: SegmentHead, end: int, columns: dict[int, Columns], summary: Summary) -> int:
    """Seal: the footer at ``end``, the trailer, the rest of the file cut off, all synced. Returns the new size."""
    payload = encode_footer(columns, summary)
    header = encode_header(head.seed, KIND_FOOTER, payload, position=end, synced_upto=end)
    position = TRAILER.pack(end, 0, 0)[:8]
    trailer = TRAILER.pack(end, crc32c(position, head.seed), TRAILER_MAGIC)
    size = end + stored_bytes(len(payload)) + TRAILER.size
    file.truncate(size)
    file.write([header, payload, bytes(-len(payload) % 8), trailer], end)
    file.sync()
    return size


def _footer_at(file: File, head: SegmentHead) -> tuple[int, int, int] | None:
    """(position of the footer record, its payload's length, CRC); None where the file does not end with a footer."""
    size = file.size()
    trailer = file.read(size - TRAILER.size, TRAILER.size) if size >= PAGE_BYTES + TRAILER.size else b""
    if len(trailer) != TRAILER.size:
        return None
    position, crc, magic = TRAILER.unpack(trailer)
    if magic != TRAILER_MAGIC or crc != crc32c(trailer[:8], head.seed) or position > size - TRAILER.size - HEADER_BYTES:
        return None
    header = gather_headers(file.read(position, HEADER_BYTES), np.zeros(1, dtype=np.int64))
    if not valid_headers(header, head.seed, np.array([position]))[0] or header["kind"][0] != KIND_FOOTER:
        return None
    length = int(header["length"][0])
    return (position, length, int(header["payload_crc"][0])) if position + HEADER_BYTES + length <= size else None


def read_summary(file: File, head: SegmentHead) -> Summary | None:
    """From the footer, without its columns. None where there is no footer or it is damaged."""
    found = _footer_at(file, head)
    if found is None:
        return None
    position, length, _ = found
    start = file.read(position + HEADER_BYTES, min(length, SUMMARY_BYTES))
    decoded = decode_summary(start)
    if decoded is None and length > len(start):
        decoded = decode_summary(file.read(position + HEADER_BYTES, length))
    return decoded[0] if decoded else None


def read_index(file: File, head: SegmentHead) -> dict[int, Columns] | None:
    """The footer's columns. None where there is no footer or it is damaged."""
    found = _footer_at(file, head)
    if found is None:
        return None
    position, length, crc = found
    payload = file.read(position + HEADER_BYTES, length)
    return decode_columns(payload) if len(payload) == length and crc32c(payload) == crc else None


class RecordsRead(NamedTuple):
    records: np.ndarray
    payloads: list[memoryview]
    damaged: list[int]
    """Offsets whose header or payload on disk is not what was written."""


def read_records(file: File, seed: int, columns: Columns, *, trusted_from: int) -> RecordsRead:
    """Read the records of ``columns`` with few, large reads.

    Headers are always checked; payloads that lie below ``trusted_from`` too (above, they were checked and written a
    moment ago and come out of the page cache).
    """
    ends = columns.position.astype(np.int64) + columns.length + HEADER_BYTES
    starts = columns.position.astype(np.int64)
    parts: list[np.ndarray] = []
    payloads: list[memoryview] = []
    damaged: list[int] = []
    i, count = 0, len(starts)
    breaks = np.flatnonzero(starts[1:] - ends[:-1] > READ_GAP_BYTES) + 1
    while i < count:
        at = int(breaks.searchsorted(i, "right"))
        stop = int(breaks[at]) if at < len(breaks) else count
        start = int(starts[i])
        if int(ends[stop - 1]) - start > READ_BYTES_MAX:
            stop = max(i + 1, int(ends.searchsorted(start + READ_BYTES_MAX, "right")))
        buffer = file.read(start, int(ends[stop - 1]) - start)
        wanted = columns.part(i, stop)
        whole = int(ends[i:stop].searchsorted(start + len(buffer), "right"))
        damaged += wanted.offset[whole:].tolist()  # beyond the end of a truncated file
        wanted = wanted.part(0, whole)
        headers = gather_headers(buffer, starts[i : i + whole] - start)
        good = valid_headers(headers, seed, starts[i : i + whole])
        good &= (headers["offset"] == wanted.offset) & (headers["length"] == wanted.length)
        view = memoryview(buffer)
        begin = (starts[i : i + whole] - start + HEADER_BYTES).tolist()
        finish = (ends[i : i + whole] - start).tolist()
        slices = [view[b:e] for b, e in zip(begin, finish, strict=True)]
        if start < trusted_from:
            crcs = np.fromiter(map(crc32c, slices), dtype=np.uint32, count=whole)
            good &= crcs == headers["payload_crc"]
        if not good.all():
            damaged += wanted.offset[~good].tolist()
            slices = [s for s, fine in zip(slices, good.tolist(), strict=True) if fine]
            headers = headers[good]
        parts.append(headers)
        payloads += slices
        i = stop
    joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return RecordsRead(as_records(joined), payloads, damaged)
