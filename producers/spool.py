"""The spool: where live sources put batches while the broker is away, on a bounded piece of disk.

It is the broker's own log with one partition: checksummed, recovered after any end, dropped segment by segment. Each
batch keeps its (session, seq) (R8), so one that had reached the broker after all is known there. The floor (what is
done with) rides in the log's journal; after a kill it may lag, never lead.
"""

from __future__ import annotations

import secrets
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from crc32c import crc32c

from zmqbroker.storage.interface import CONTROL_PARTITION, CRC_BY_LOG, KIND_CONTROL, KIND_DATA, Append
from zmqbroker.storage.log import DiskLog

SEGMENTS: Final = 8
"""The spool is cut into about so many segments: the least that is dropped at once is one of them."""
SEGMENT_BYTES_MIN: Final = 1 << 20
_STATE: Final = struct.Struct("<QQQ")  # floor, session of spooled batches, next seq in it


class Spooled(NamedTuple):
    """A batch in the spool."""

    offset: int
    session: int
    seq: int
    rows: int
    payload: bytes


class Spool:
    """Thread-safe. ``bytes_max`` bounds the disk; beyond it the oldest batches are dropped and counted."""

    def __init__(self, directory: Path, bytes_max: int, clock: Callable[[], float] = time.time) -> None:
        """Raises :class:`zmqbroker.errors.DirectoryLocked` where another streamer has it."""
        self._clock = clock
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        segment_bytes = max(SEGMENT_BYTES_MIN, bytes_max // SEGMENTS)
        self._log = DiskLog(directory, 1, segment_bytes=segment_bytes)
        recovered = self._log.recover()
        state = recovered.snapshot or b""
        self._rows: dict[int, int] = {}
        for entry in recovered.entries:
            if entry[0] == "control":
                state = entry[1]
            else:
                for record in entry[2]:
                    self._rows[int(record["offset"])] = int(record["rows"])
        self._next = recovered.next_offsets[0]
        floor, _, _ = _STATE.unpack(state) if len(state) == _STATE.size else (0, 0, 0)
        self._floor = floor
        # A session of this process: what an earlier one spooled keeps the session it was given.
        self.session = secrets.randbits(64)
        self._next_seq = 1
        first = self._log.stats().first_offsets[0]
        self._floor = max(self._floor, first)
        self._rows = self._held_rows(first)
        self.rows_dropped = 0
        self.batches_dropped = 0

    @property
    def batches(self) -> int:
        """Batches that wait."""
        return len(self._rows)

    @property
    def rows(self) -> int:
        """Rows that wait."""
        with self._lock:
            return sum(self._rows.values())

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self._log.stats().bytes

    def append_new(self, pack: Callable[[int, int], bytes], rows: int) -> None:
        """Keep a batch that was never sent; it gets an address of the spool's own session."""
        with self._lock:
            payload = pack(self.session, self._next_seq)
            self._append([(self.session, self._next_seq, rows, payload)])
            self._next_seq += 1

    def append_sent(self, batches: list[tuple[int, int, int, bytes]]) -> None:
        """Keep batches (session, seq, rows, payload) that were sent and not acknowledged, under their own address."""
        with self._lock:
            self._append(batches)

    def oldest(self, after: int, bytes_max: int) -> list[Spooled]:
        """Batches with an offset above ``after`` (-1: from the oldest), oldest first, about ``bytes_max`` in all."""
        with self._lock:
            first = max(after + 1, self._floor)
            if first >= self._next:
                return []
            cut = self._log.cut(0, first, self._next, 1 << 30, bytes_max)
            chunk = self._log.read(0, first, max(cut.last, first))
        found, at = [], 0
        for record in chunk.records:
            length = int(record["length"])
            payload = chunk.body[at : at + length]
            at += length
            offset, session, seq, rows = (int(record[name]) for name in ("offset", "session", "seq", "rows"))
            found.append(Spooled(offset, session, seq, rows, bytes(payload)))
        return found

    def done(self, offset: int) -> None:
        """Everything up to ``offset`` is durable at the broker."""
        with self._lock:
            self._move_floor(offset + 1)
            self._log.drop_before([self._floor], 1 << 62)

    def close(self) -> None:
        """Write the floor and let go."""
        with self._lock:
            self._log.close(self._state())

    def _append(self, batches: list[tuple[int, int, int, bytes]]) -> None:
        now_ms = int(self._clock() * 1000)
        appends: list[Append] = []
        for session, seq, rows, payload in batches:
            appends.append((KIND_DATA, 0, self._next, session, seq, 0, rows, now_ms, crc32c(payload), payload))
            self._rows[self._next] = rows
            self._next += 1
        appends.append((KIND_CONTROL, CONTROL_PARTITION, 0, 0, 0, 0, 0, now_ms, CRC_BY_LOG, self._state()))
        # The size of what is written now counts too: the bound holds at every moment.
        self._make_room(sum(len(payload) for *_, payload in batches))
        self._log.commit(appends, roll_snapshot=self._state() if self._log.wants_roll else None)

    def _make_room(self, wanted: int) -> None:
        while self._log.stats().bytes + wanted > self._bytes_max and self._rows:
            before = self._log.stats().bytes
            # The oldest eighth at least; whole segments go.
            offsets = sorted(self._rows)
            victims = offsets[: max(1, len(offsets) // SEGMENTS)]
            for offset in victims:
                self.rows_dropped += self._rows[offset]
                self.batches_dropped += 1
            self._move_floor(victims[-1] + 1)
            self._log.drop_before([self._floor], 1 << 62)
            if self._log.stats().bytes >= before and not self._rows:
                return

    def _move_floor(self, floor: int) -> None:
        self._floor = max(self._floor, floor)
        for offset in [offset for offset in self._rows if offset < self._floor]:
            del self._rows[offset]

    def _held_rows(self, first: int) -> dict[int, int]:
        held: dict[int, int] = {}
        at = max(first, self._floor)
        while at < self._next:
            cut = self._log.cut(0, at, self._next, 1 << 30, 4 << 20)
            if cut.last < at:
                break
            for record in self._log.read(0, at, cut.last).records:
                held[int(record["offset"])] = int(record["rows"])
            at = cut.last + 1
        return held

    def _state(self) -> bytes:
        return _STATE.pack(self._floor, self.session, self._next_seq)
