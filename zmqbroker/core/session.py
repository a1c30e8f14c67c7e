"""What the broker knows of one producer session: which seqs are in the log, exactly (R4).

Theory. A seq is *known* if that very seq is in the log of the session's topic. Known seqs are kept as a contiguous
run ``[floor, contig)`` and a set above it. The floor comes from the producer, which says its lowest unacked seq in
every PUBLISH: below it nothing is ever resent, so nothing below needs to be remembered. A watermark over several
partitions would not do: a crash may keep seq 7 of one partition and lose seq 6 of another.

A session publishes into one topic, so its state is recovered from that topic's log alone.
"""

from __future__ import annotations

from collections.abc import Iterable


class Session:
    """One run of one producer. Changed only by :class:`zmqbroker.core.broker.Core`."""

    __slots__ = (
        "above",
        "conn",
        "contig",
        "floor",
        "freed_bytes",
        "generation",
        "granted_bytes",
        "hungry",
        "id",
        "idle_ms",
        "incarnation",
        "known",
        "last_ms",
        "last_seen_s",
        "name",
        "received_bytes",
        "received_mark",
        "since_s",
        "topic",
        "wanted_bytes",
    )

    def __init__(self, session_id: int, topic: str) -> None:
        self.id = session_id
        self.topic = topic
        self.name = ""
        self.floor = 0
        self.contig = 0
        self.above: set[int] = set()
        self.last_ms = 0
        """When a batch of it last came, on the broker's steady clock."""
        self.idle_ms = 0
        """How long before a snapshot that was. Ages are kept, not times: a clock that is set, or a long downtime, must
        not make a session old (R5)."""
        self.last_seen_s = 0.0
        self.since_s = 0.0
        """When the conversation began."""
        # The conversation; meaningless after a restart of the broker.
        self.conn: bytes | None = None
        self.generation = 0
        self.incarnation = 0
        self.known = False
        """Whether this conversation began with something of the session in the log."""
        # Credit, absolute within the generation: granted >= received >= freed.
        self.granted_bytes = 0
        self.received_bytes = 0
        self.received_mark = 0
        """``received_bytes`` a moment ago, to see who has sent nothing since."""
        self.freed_bytes = 0
        self.wanted_bytes = 0
        self.hungry = False

    def knows(self, seq: int) -> bool:
        """Whether this very seq is in the log (below the floor: was acked, and is never asked for again)."""
        return seq < self.contig or seq in self.above

    def learn(self, seq: int, lowest: int) -> None:
        """A record with ``seq`` was appended; the producer's lowest unacked seq was ``lowest``."""
        if lowest > self.floor:
            self.raise_floor(lowest)
        if seq == self.contig:
            self.contig = seq = seq + 1
            above = self.above
            if above:
                while seq in above:
                    above.discard(seq)
                    seq += 1
                self.contig = seq
        elif seq > self.contig:
            self.above.add(seq)

    def raise_floor(self, lowest: int) -> None:
        """Everything below ``lowest`` is settled for the producer."""
        self.floor = lowest
        if lowest > self.contig:
            self.contig = lowest
            if self.above:
                self.above = {s for s in self.above if s >= lowest}
                while self.contig in self.above:
                    self.above.discard(self.contig)
                    self.contig += 1

    def forget(self, seq: int) -> None:
        """The record with ``seq`` did not make it (its payload failed the CRC): it must be sent again."""
        if seq < self.contig:
            self.above.update(range(seq + 1, self.contig))
            self.contig = seq
        else:
            self.above.discard(seq)

    def state(self) -> list[object]:
        """What a snapshot keeps: [id, floor, contig, ranges above, idle milliseconds]."""
        return [self.id, self.floor, self.contig, ranges_of(self.above), self.idle_ms]

    @classmethod
    def restore(cls, state: list, topic: str) -> Session:
        session = cls(state[0], topic)
        session.floor, session.contig, session.idle_ms = state[1], state[2], state[4]
        for first, last in state[3]:
            session.above.update(range(first, last + 1))
        return session


def ranges_of(seqs: Iterable[int]) -> list[list[int]]:
    """Sorted, merged inclusive ranges: {1, 2, 4} becomes [[1, 2], [4, 4]]."""
    ranges: list[list[int]] = []
    for seq in sorted(seqs):
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    return ranges
