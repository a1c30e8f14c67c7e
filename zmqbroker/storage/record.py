"""The record: a fixed header of 72 bytes, its payload, zeros up to the next multiple of 8.

    offset size field
         0    4 header_crc   CRC32C of bytes 4..72, seeded with the segment's incarnation
         4    2 magic        0x5A51
         6    1 kind         1 data, 2 control, 3 void, 4 gap, 5 snapshot, 6 open, 7 footer
         7    1 flags        1 clean (a snapshot that closes the log)
         8    4 length       of the payload
        12    4 payload_crc  CRC32C of the payload
        16    2 partition    0xFFFF where there is none
        18    2              zero
        20    4 rows
        24    8 offset       of the record in its partition; a gap's first
        32    8 session
        40    8 seq
        48    8 lowest       the producer's lowest unacked seq; a gap's last offset
        56    8 time_ms      when the broker took it
        64    4 position     of this header in its file
        68    4 synced_upto  what was known durable of this file when this was written

All little-endian. The header has a checksum of its own, so that its length can be trusted before the payload is
read. The seed makes every header of a recycled file worthless, and the position makes a header worthless anywhere
but where it was written, so that neither stale bytes nor a payload that contains a log pass for records (R10).
``synced_upto`` tells corruption from a torn tail: what is bad below the highest one seen was good once.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from crc32c import crc32c

from zmqbroker.storage.interface import RECORD

MAGIC: Final = 0x5A51
KIND_OPEN: Final = 6  # the log was opened here: what was clean is so no more
KIND_FOOTER: Final = 7  # the index of a sealed segment
FLAG_CLEAN: Final = 1

FIELDS: Final = struct.Struct("<HBBIIHHIQQQQQII")
CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = CRC.size + FIELDS.size
assert HEADER_BYTES == 72

HEADER: Final = np.dtype(
    [
        ("header_crc", "<u4"),
        ("magic", "<u2"),
        ("kind", "u1"),
        ("flags", "u1"),
        ("length", "<u4"),
        ("payload_crc", "<u4"),
        ("partition", "<u2"),
        ("reserved", "<u2"),
        ("rows", "<u4"),
        ("offset", "<u8"),
        ("session", "<u8"),
        ("seq", "<u8"),
        ("lowest", "<u8"),
        ("time_ms", "<u8"),
        ("position", "<u4"),
        ("synced_upto", "<u4"),
    ]
)
assert HEADER.itemsize == HEADER_BYTES

PADDING: Final = tuple(bytes(-n % 8) for n in range(8))
"""By ``length & 7``: the zeros after a payload (a header is a multiple of 8 itself)."""
POSITION_MAX: Final = 0xFFFF_FFFF
_COLUMNS: Final = np.arange(HEADER_BYTES)


def stored_bytes(length: int) -> int:
    """On disk, of a record whose payload has ``length`` bytes."""
    return (HEADER_BYTES + 7 + length) & -8


def encode_header(
    seed: int, kind: int, payload: bytes, *, position: int, synced_upto: int, flags: int = 0, partition: int = 0xFFFF,
    offset: int = 0, last: int = 0, time_ms: int = 0,
) -> bytes:  # fmt: skip
    """The header of one record that is not data. The commit's loop has this inlined."""
    crc, length = crc32c(payload), len(payload)
    fields = FIELDS.pack(
        MAGIC, kind, flags, length, crc, partition, 0, 0, offset, 0, 0, last, time_ms, position, synced_upto
    )
    return CRC.pack(crc32c(fields, seed)) + fields


def _contributions() -> np.ndarray:
    """CRC32C is linear: what each value of each header byte adds (by XOR) to the CRC of an all-zero header."""
    size = FIELDS.size
    zeros = crc32c(bytes(size))
    table = np.zeros((size, 256), dtype=np.uint32)
    for i in range(size):
        for bit in range(8):
            one = bytearray(size)
            one[i] = 1 << bit
            table[i, 1 << bit] = crc32c(one) ^ zeros
        for value in range(1, 256):
            low = value & -value
            table[i, value] = table[i, low] ^ table[i, value ^ low]
    return table.ravel()


_TABLE = np.empty(0, dtype=np.uint32)
_ROWS: Final = np.arange(FIELDS.size) * 256


def header_crcs(headers: np.ndarray, seed: int) -> np.ndarray:
    """The CRC that each header (dtype :data:`HEADER`) should have: 0.1 us each, no Python call a header."""
    global _TABLE
    if not len(_TABLE):
        _TABLE = _contributions()
    raw = np.ascontiguousarray(headers).view(np.uint8).reshape(len(headers), HEADER_BYTES)[:, CRC.size :]
    found = np.empty(len(headers), dtype=np.uint32)
    for i in range(0, len(headers), 8192):  # the gathered table entries take 272 bytes a header
        np.bitwise_xor.reduce(_TABLE[raw[i : i + 8192] + _ROWS], axis=1, out=found[i : i + 8192])
    return found ^ np.uint32(crc32c(bytes(FIELDS.size), seed))


def gather_headers(buffer: bytes | memoryview, positions: np.ndarray) -> np.ndarray:
    """Headers (dtype :data:`HEADER`) at ``positions`` of ``buffer``."""
    raw = np.frombuffer(buffer, dtype=np.uint8)
    return raw[positions.astype(np.int64)[:, None] + _COLUMNS].view(HEADER).reshape(len(positions))


def valid_headers(headers: np.ndarray, seed: int, positions: np.ndarray) -> np.ndarray:
    """Mask: intact, and written at this very place."""
    there: np.ndarray = (headers["magic"] == MAGIC) & (headers["position"] == positions)
    return there & (headers["header_crc"] == header_crcs(headers, seed))


def as_records(headers: np.ndarray) -> np.ndarray:
    """The columns that leave the log (dtype ``RECORD``)."""
    records = np.empty(len(headers), dtype=RECORD)
    for name in RECORD.names or ():
        records[name] = headers[name]
    return records
