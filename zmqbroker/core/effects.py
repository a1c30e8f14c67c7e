"""What the core wants done. One structure, reused: the caller runs it, then clears it."""

from __future__ import annotations

from typing import NamedTuple

from zmqbroker.core.config import TopicConfig


class Read(NamedTuple):
    """Read [first, last] of a partition; answer with a READ or FAILED event that carries this very question."""

    purpose: int
    topic: str
    group: str
    range_id: int
    partition: int
    first: int
    last: int
    attempt: int
    conn: bytes = b""
    generation: int = 0
    """To deliver: whose credit was taken for it, and in which conversation."""


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
    """The question is how much lies between ``first`` and ``end``."""
    rows_before_end: int = 0
    bytes_before_end: int = 0
    """The partition's running totals before ``end``, when this was asked."""


class Hand(NamedTuple):
    """One commit for one topic's log: all of ``appends`` or nothing becomes visible, in this order."""

    topic: str
    commit_id: int
    appends: list[tuple]
    snapshot: bytes | None
    """The log said it wants to roll: this begins the new segment."""


class Effects:
    """Lists to be run in this order: hands, sends, reads, cuts, opens, notices."""

    __slots__ = ("cuts", "hands", "notices", "opens", "reads", "sends")

    def __init__(self) -> None:
        self.hands: list[Hand] = []
        self.sends: list[tuple[bytes, list[bytes]]] = []
        """(connection, frames)."""
        self.reads: list[Read] = []
        self.cuts: list[CutAsk] = []
        self.opens: list[tuple[str, TopicConfig]] = []
        self.notices: list[tuple[str, dict[str, object]]] = []
        """What an operator should read in the log: (message, what it is about). Rare things only."""

    def clear(self) -> None:
        self.hands.clear()
        self.sends.clear()
        self.reads.clear()
        self.cuts.clear()
        self.opens.clear()
        self.notices.clear()
