"""Runs: consecutive batches that a producer seals together for a collector that has no broker before it (R30).

A run [first seq, last seq] is there the unit of INSERT, ack and failover. It is sealed when it is first sent and keeps
its bounds, so that it has the same name at every collector that ever meets it. Each PUBLISH says its place in the run.
A run is sent when the credit covers all of it: parts of many runs could fill a collector that can begin none of them.

When a run is sealed is what a broker's groups do (R24): at once while nothing of us is unacked, else when it is full or
has waited for the linger time. So one batch now and then is stored at once, and many are stored together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple, Protocol

BATCHES_MAX: Final = 4096
"""Of one run: a collector keeps a few objects for each."""
_OPTIONS: Final = ("rows", "bytes", "linger_ms", "unacked")
Run = tuple[int, int]
"""First and last seq."""


class Limits(NamedTuple):
    """What the collector's WELCOME says of runs."""

    rows: int
    bytes: int
    linger_s: float
    unacked: int
    """Runs that may be on their way at once."""

    @classmethod
    def of(cls, options: dict[str, Any]) -> Limits | None:
        """None for a broker, which knows no runs."""
        said = options.get("runs")
        if not isinstance(said, dict):
            return None
        numbers = [n for name in _OPTIONS if isinstance(n := said.get(name), int) and n >= 0]
        if len(numbers) != len(_OPTIONS):
            return None
        rows, size, linger_ms, unacked = numbers
        return cls(max(1, rows), max(1, size), linger_ms / 1000, max(1, unacked))

    def to_options(self) -> dict[str, Any]:
        numbers = (self.rows, self.bytes, round(self.linger_s * 1000), self.unacked)
        return {"runs": dict(zip(_OPTIONS, numbers, strict=True))}


class Batch(Protocol):
    """What is sealed."""

    run: Run | None
    rows: int

    @property
    def size_bytes(self) -> int: ...


def place_of(seq: int, run: Run) -> int:
    """How a PUBLISH says where it stands in its run: seqs before it and after it."""
    return (seq - run[0]) << 16 | (run[1] - seq)


def run_at(seq: int, place: int) -> Run:
    """The run that :func:`place_of` was asked for; a place of 0 is a run of its own."""
    return seq - (place >> 16), seq + (place & 0xFFFF)


class Sealing:
    """Decides what is sealed and sent now. ``limits`` None: there is a broker, and no runs."""

    def __init__(self) -> None:
        self.limits: Limits | None = None
        self.unacked: set[Run] = set()
        """Sent in this conversation."""
        self.due_s = math.inf
        """When something that waits will have waited long enough."""
        self._since_s: float | None = None

    def sendable(self, queue: Iterable[tuple[int, Batch]], room: int, now: float) -> int:
        """Bytes of whole runs from the start of ``queue`` that fit into ``room``; seals what is due.

        ``queue``: (seq, batch) in the order in which they are to be sent.
        """
        used = 0
        self.due_s = math.inf
        for run, members in groupby(queue, key=lambda item: item[1].run):
            if run is None:
                size, whole = self._seal_all(members, room - used, now)
                used += size
                if not whole:
                    break
            else:
                size = sum(batch.size_bytes for _, batch in members)
                if used + size > room:
                    break
                used += size
                self.unacked.add(run)
        else:
            self._since_s = None
        return used

    def _seal_all(self, fresh: Iterator[tuple[int, Batch]], room: int, now: float) -> tuple[int, bool]:
        """Seal runs of what was never sealed; their bytes, and whether nothing was left over."""
        assert self.limits is not None
        used = size = rows = 0
        piece: list[tuple[int, Batch]] = []
        for seq, batch in fresh:
            full = (
                rows + batch.rows > self.limits.rows
                or size + batch.size_bytes > self.limits.bytes
                or len(piece) == BATCHES_MAX
            )
            if piece and (full or seq != piece[-1][0] + 1):
                if not self._seal(piece):
                    return used, False
                used, size, rows, piece = used + size, 0, 0, []
            if used + size + batch.size_bytes > room:
                break
            piece.append((seq, batch))
            size += batch.size_bytes
            rows += batch.rows
        else:
            if not piece:
                return used, True
        if self._since_s is None:
            self._since_s = now
        if piece and (not self.unacked or now >= self._since_s + self.limits.linger_s) and self._seal(piece):
            self._since_s = None
            return used + size, False
        if piece and len(self.unacked) < self.limits.unacked:
            self.due_s = self._since_s + self.limits.linger_s
        return used, False

    def _seal(self, piece: list[tuple[int, Batch]]) -> bool:
        assert self.limits is not None
        if len(self.unacked) >= self.limits.unacked:
            return False
        run = piece[0][0], piece[-1][0]
        self.unacked.add(run)
        for _, batch in piece:
            batch.run = run
        return True
