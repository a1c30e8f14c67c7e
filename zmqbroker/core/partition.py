"""One partition of a topic as the core sees it: offsets, running totals and the tail cache.

The log is the queue; memory holds only the tail, and the tail is bounded. Running totals (``rows_total``,
``bytes_total``) stand beside each cached entry, so that how much waits behind any offset, and where a range of at
most so many rows ends, is a subtraction and a bisection instead of a walk.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import Final, NamedTuple

ENTRY_OVERHEAD_BYTES: Final = 320
"""What a cached entry costs in CPython beside its payload: the tuple, its numbers, the packed record, the slot."""

_rows_total = itemgetter(0)
_bytes_total = itemgetter(1)


class Cut(NamedTuple):
    """The end of a range: last offset (inclusive), its rows and payload bytes."""

    last: int
    rows: int
    bytes: int


class Partition:
    """Offsets and tail of one partition. Changed only by the core."""

    __slots__ = (
        "base",
        "bytes_total",
        "durable_offset",
        "entries",
        "first_offset",
        "index",
        "next_offset",
        "resent",
        "resent_until_s",
        "rows_total",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.first_offset = 0
        self.next_offset = 0
        self.durable_offset = 0
        """Every offset below is synced and may be delivered (R9)."""
        self.rows_total = 0
        self.bytes_total = 0
        self.base = 0
        """Offset of ``entries[0]``."""
        self.entries: list[tuple[int, int, bytes, bytes | None]] = []
        """(rows_total, bytes_total, packed record, payload or None if void), totals after this entry."""
        self.resent: list[int] = []
        """Offsets of batches that another log may hold too, not yet settled by every group (R7)."""
        self.resent_until_s = 0.0
        """Until when what another log gave out of them may still be on its way into the store (R14)."""

    def append(self, rows: int, record: bytes, payload: bytes) -> None:
        """Take the record of ``next_offset`` into the tail."""
        self.rows_total += rows
        self.bytes_total += len(payload)
        self.entries.append((self.rows_total, self.bytes_total, record, payload))
        self.next_offset += 1

    def void(self, offset: int) -> None:
        """The payload of ``offset`` failed its CRC: the offset stays, empty."""
        i = offset - self.base
        if 0 <= i < len(self.entries):
            rows_total, bytes_total, record, _ = self.entries[i]
            self.entries[i] = (rows_total, bytes_total, record, None)

    def cut(self, first: int, rows_before: int, bytes_before: int, max_rows: int, max_bytes: int) -> Cut | None:
        """Longest range from ``first`` within both limits, one record at least; None where ``first`` left the tail.

        ``rows_before`` and ``bytes_before`` are the running totals before ``first``.
        """
        lo = first - self.base
        if lo < 0:
            return None
        entries = self.entries
        hi = len(entries)
        if self.rows_total - rows_before > max_rows:
            hi = bisect_right(entries, rows_before + max_rows, lo, hi, key=_rows_total)
        if self.bytes_total - bytes_before > max_bytes:
            hi = min(hi, bisect_right(entries, bytes_before + max_bytes, lo, len(entries), key=_bytes_total))
        hi = max(hi, lo + 1)
        last = entries[hi - 1]
        return Cut(self.base + hi - 1, last[0] - rows_before, last[1] - bytes_before)

    def slice(self, first: int, last: int) -> tuple[bytes, bytes, int] | None:
        """(packed records, concatenated payloads, number of records) of [first, last]; None where it left the tail."""
        lo = first - self.base
        if lo < 0:
            return None
        chosen = [e for e in self.entries[lo : last - self.base + 1] if e[3] is not None]
        return b"".join([e[2] for e in chosen]), b"".join([e[3] for e in chosen if e[3] is not None]), len(chosen)

    def payload(self, offset: int) -> bytes | None:
        i = offset - self.base
        return self.entries[i][3] if 0 <= i < len(self.entries) else None

    @property
    def tail_bytes(self) -> int:
        """What the tail holds of the memory budget."""
        entries = self.entries
        if not entries:
            return 0
        first = entries[0]
        return entries[-1][1] - first[1] + _length(first) + ENTRY_OVERHEAD_BYTES * len(entries)

    def shrink(self, target_bytes: int) -> None:
        """Forget the oldest entries that are durable until the tail is at most ``target_bytes``."""
        entries = self.entries
        over = self.tail_bytes - target_bytes
        durable = self.durable_offset - self.base
        if over <= 0 or durable <= 0:
            return
        lo, hi = 0, durable
        start = entries[0][1] - _length(entries[0])
        while lo < hi:
            mid = (lo + hi) // 2
            if entries[mid][1] - start + ENTRY_OVERHEAD_BYTES * (mid + 1) < over:
                lo = mid + 1
            else:
                hi = mid
        gone = min(lo + 1, durable)
        del entries[:gone]
        self.base += gone


def _length(entry: tuple[int, int, bytes, bytes | None]) -> int:
    """Of an entry's payload, as it counts in the totals: a void's is gone, its bytes still stand in them."""
    return int.from_bytes(entry[2][44:48], "little")
