"""What the core wants done. One structure, reused: the caller runs it, then clears it."""

from __future__ import annotations

from typing import NamedTuple

from zmqbroker.core.config import TopicConfig


class Read(NamedTuple):
    """Read [first, last] of a partition; answer with a READ event that carries ``purpose`` and ``range_id``."""

    purpose: int
    topic: str
    group: str
    range_id: int
    partition: int
    first: int
    last: int
    attempt: int


class CutAsk(NamedTuple):
    """Find where a range ends on disk; answer with a CUT event."""

    topic: str
    group: str
    partition: int
    first: int
    end: int
    max_rows: int
    max_bytes: int
    measure: bool


class Hand(NamedTuple):
    """One commit for one topic's log: all of ``appends`` or nothing becomes visible, in this order."""

    topic: str
    commit_id: int
    appends: list[tuple]
    snapshot: bytes | None
    """The log said it wants to roll: this begins the new segment."""


class Effects:
    """Lists to be run in this order: hands, sends, reads, cuts, opens."""

    __slots__ = ("cuts", "hands", "opens", "reads", "sends")

    def __init__(self) -> None:
        self.hands: list[Hand] = []
        self.sends: list[tuple[bytes, list[bytes]]] = []
        """(connection, frames)."""
        self.reads: list[Read] = []
        self.cuts: list[CutAsk] = []
        self.opens: list[tuple[str, TopicConfig]] = []

    def clear(self) -> None:
        self.hands.clear()
        self.sends.clear()
        self.reads.clear()
        self.cuts.clear()
        self.opens.clear()
