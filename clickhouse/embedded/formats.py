"""Output formats: their media types, and which can be sent while the query still runs.

The engine hands rows out in pieces, each a complete document of the format. Concatenated they are one document only
for formats without a head; for those with column names in front the head is dropped from every piece but the first.
All others (JSON, Arrow, Parquet, Pretty...) are sent when they are complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_PLAIN: Final = frozenset(
    {
        *("tabseparated", "tsv", "tabseparatedraw", "tsvraw", "raw", "tskv", "csv", "lineasstring", "rawblob", "null"),
        *("jsoneachrow", "jsonlines", "ndjson", "jsonstringseachrow", "jsoncompacteachrow"),
        *("jsoncompactstringseachrow", "native", "rowbinary"),
    }
)


def _lines(count: int) -> Callable[[bytes], int]:
    def head(piece: bytes) -> int:
        at = 0
        for _ in range(count):
            at = piece.find(b"\n", at) + 1
        return at

    return head


def _csv_lines(count: int) -> Callable[[bytes], int]:
    """As :func:`_lines`, but a quoted name may hold a line end."""

    def head(piece: bytes) -> int:
        at = left = 0
        inside = False
        while left < count:
            quote, end = piece.find(b'"', at), piece.find(b"\n", at)
            if quote >= 0 and (inside or quote < end):
                inside = not inside
                at = quote + 1
            else:
                at = end + 1
                left += 1
        return at

    return head


def _binary(with_types: bool) -> Callable[[bytes], int]:
    def number(piece: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = piece[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7

    def head(piece: bytes) -> int:
        columns, at = number(piece, 0)
        for _ in range(columns * (2 if with_types else 1)):
            size, at = number(piece, at)
            at += size
        return at

    return head


_HEADS: Final[dict[str, Callable[[bytes], int]]] = {
    **dict.fromkeys(("tabseparatedwithnames", "tsvwithnames", "jsoncompacteachrowwithnames"), _lines(1)),
    **dict.fromkeys(
        ("tabseparatedwithnamesandtypes", "tsvwithnamesandtypes", "jsoncompacteachrowwithnamesandtypes"), _lines(2)
    ),
    "csvwithnames": _csv_lines(1),
    "csvwithnamesandtypes": _csv_lines(2),
    "rowbinarywithnames": _binary(False),
    "rowbinarywithnamesandtypes": _binary(True),
}


def streams(name: str) -> bool:
    """Whether results of this format can be sent piece by piece."""
    return name.lower() in _PLAIN or name.lower() in _HEADS


def head_bytes(name: str, piece: bytes) -> int:
    """Length of what a piece starts with beside its rows."""
    find = _HEADS.get(name.lower())
    return find(piece) if find else 0


def content_type(name: str) -> str:
    """The media type that the HTTP interface gives for a format."""
    lower = name.lower()
    if lower in ("jsoneachrow", "jsonlines", "ndjson") or lower.endswith("eachrow"):
        return "application/x-ndjson; charset=UTF-8"
    if lower.startswith(("json", "prettyjson")):
        return "application/json; charset=UTF-8"
    if lower.startswith("csv"):
        return "text/csv; charset=UTF-8; header=" + ("present" if "withnames" in lower else "absent")
    if lower.startswith(("tabseparated", "tsv", "raw")) and lower != "rawblob":
        return "text/tab-separated-values; charset=UTF-8"
    if lower.startswith(("native", "rowbinary", "parquet", "orc", "avro", "arrow", "msgpack", "rawblob", "bson")):
        return "application/octet-stream"
    if lower == "xml":
        return "application/xml; charset=UTF-8"
    return "text/plain; charset=UTF-8"
