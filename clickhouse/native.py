"""ClickHouse's Native format, written column by column with NumPy: no Python object a row.

A block is ``columns, rows, then for each column: name, type, data``. Numbers are their little-endian memory; a
LowCardinality column is a dictionary and an array of keys, which is what a batch's codes already are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

NUMBERS: Final[dict[str, str]] = {
    "UInt8": "<u1",
    "UInt16": "<u2",
    "UInt32": "<u4",
    "UInt64": "<u8",
    "Int64": "<i8",
    "Float64": "<f8",
    "DateTime64(3, 'UTC')": "<i8",
}
"""ClickHouse type -> NumPy dtype. DateTime64(3) is milliseconds since the epoch."""

LOW_CARDINALITY: Final = "LowCardinality(String)"

_LC_HEAD: Final = struct.Struct("<QQQ")
_LC_VERSION: Final = 1
_LC_KEYS_FOLLOW: Final = 1 << 9
"""The dictionary stands in the block itself, as opposed to a global one."""
_KEY_TYPES: Final = ((1 << 8, 0, "<u1"), (1 << 16, 1, "<u2"), (1 << 32, 2, "<u4"))
"""(values fewer than, key type code, dtype)"""


class Coded(NamedTuple):
    """A text column: ``codes`` (any unsigned integer array, a row each) into ``values``."""

    codes: np.ndarray
    values: Sequence[str]

    @classmethod
    def constant(cls, value: str, rows: int) -> Coded:
        """The same text in every row."""
        return cls(np.zeros(rows, dtype=np.uint8), (value,))


@dataclass(frozen=True, slots=True)
class Keys:
    """A UInt64 column of few distinct values: ``codes`` (any integer array, one a row) into ``values`` (uint64)."""

    codes: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: np.ndarray) -> Keys:
        """Some of the rows, by mask or index."""
        return Keys(self.codes[index], self.values)


def flat(column: np.ndarray | Keys) -> np.ndarray:
    """The values row by row."""
    return column.values[column.codes] if isinstance(column, Keys) else column


def varint(number: int) -> bytes:
    """LEB128, as Native writes sizes."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def text(value: str) -> bytes:
    """One string: its length in bytes, then UTF-8."""
    data = value.encode("utf-8", "replace")
    return varint(len(data)) + data


def numbers(kind: str, values: np.ndarray) -> list[bytes | memoryview]:
    """Data of a numeric column; a view where the array already has the right memory."""
    return [np.ascontiguousarray(values, dtype=NUMBERS[kind]).data.cast("B")]


def low_cardinality(column: Coded) -> list[bytes | memoryview]:
    """Data of a ``LowCardinality(String)`` column. Codes must lie within ``values``; they are not checked again."""
    rows = len(column.codes)
    if not rows:
        return []
    # Key 0 is the type's default value by convention, so every code moves up by one.
    keys = len(column.values) + 1
    _, key_type, dtype = next(entry for entry in _KEY_TYPES if keys <= entry[0])
    shifted = np.add(column.codes, 1, dtype=dtype, casting="unsafe")
    return [
        _LC_HEAD.pack(_LC_VERSION, _LC_KEYS_FOLLOW | key_type, keys),
        b"\0" + b"".join(map(text, column.values)),
        struct.pack("<Q", rows),
        shifted.data.cast("B"),
    ]


def keys(column: np.ndarray | Keys) -> tuple[str, list[bytes | memoryview]]:
    """Type and data of a UInt64 column. Keys travel as dictionary and codes where that is shorter; the server casts.

    It takes a fifth of the bytes, half the time here, and a tenth less of the server's than 8 bytes a row.
    """
    if isinstance(column, Keys):
        if 2 * len(column.values) <= len(column):
            _, key_type, dtype = next(entry for entry in _KEY_TYPES if len(column.values) <= entry[0])
            return "LowCardinality(UInt64)", [
                _LC_HEAD.pack(_LC_VERSION, _LC_KEYS_FOLLOW | key_type, len(column.values)),
                *numbers("UInt64", column.values),
                struct.pack("<Q", len(column)),
                np.ascontiguousarray(column.codes, dtype=dtype).data.cast("B"),
            ]
    return "UInt64", numbers("UInt64", flat(column))


def strings(values: Iterable[str]) -> list[bytes | memoryview]:
    """Data of a ``String`` column: an object a value, for small tables only."""
    return [b"".join(map(text, values))]


def maps(values: Sequence[Mapping[str, str]]) -> list[bytes | memoryview]:
    """Data of a ``Map(String, String)`` column: offsets, all keys, all values."""
    offsets = np.cumsum([len(value) for value in values], dtype="<u8")
    return [
        offsets.data.cast("B"),
        *strings(key for value in values for key in value),
        *strings(item for value in values for item in value.values()),
    ]


class Column(NamedTuple):
    """One column of a block, its data in pieces."""

    name: str
    kind: str
    data: list[bytes | memoryview]


def block(rows: int, columns: Sequence[Column]) -> bytes:
    """The whole block, joined once."""
    parts: list[bytes | memoryview] = [varint(len(columns)), varint(rows)]
    for column in columns:
        parts.append(text(column.name) + text(column.kind))
        parts.extend(column.data)
    return b"".join(parts)
