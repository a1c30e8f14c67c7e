"""Dead letters: written to ``<topic>.dlq`` once an origin, before the range they come from is settled (R26).

The dead-letter topic is a topic like any other. That a letter is written once, though the broker may die between the
letter and the settlement, comes from the same exact session state that producers have: the session is made from
where the letter comes from (log, partition, group), the seq is its offset there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from crc32c import crc32c

from zmqbroker.core.config import TopicConfig
from zmqbroker.core.effects import Read
from zmqbroker.core.events import BURY
from zmqbroker.core.group import BURYING, Group, Range
from zmqbroker.core.session import Session
from zmqbroker.core.state import State, dead_letter_topic, envelope
from zmqbroker.core.topic import KIND_DATA, Topic
from zmqbroker.protocol import RECORD_STRUCT


class Burying:
    """Moves records that cannot be stored into the dead-letter topic."""

    def __init__(self, state: State) -> None:
        self.s = state
        self.settled: Callable[[Topic, Group, Range, int, int], None]
        """How a range is done (:meth:`Delivering.settled`)."""
        self._pending: dict[tuple[str, str, int], tuple[list[int] | None, str, int]] = {}

    def bury(
        self, topic: Topic, group: Group, range_: Range, dead: list[int] | None, reason: str, rejected_rows: int = 0
    ) -> None:
        """Dead-letter the records at ``dead`` offsets (None: all of the range), then settle the whole range."""
        if range_.letter is not None:
            self.settled(topic, group, range_, rejected_rows, range_.rows)  # its letter is still there
            return
        if group.config.mode == "ordered":
            group.order_breaks += 1
            self.s.fx.notices.append(
                (
                    "a dead letter breaks the order of a group",
                    {"topic": topic.name, "group": group.name, "partition": range_.partition, "first": range_.first},
                )
            )
        group.release(range_)
        range_.state = BURYING
        self._pending[(topic.name, group.name, range_.id)] = (dead, reason, rejected_rows)
        read = Read(BURY, topic.name, group.name, range_.id, range_.partition, range_.first, range_.last, 0)
        tail = topic.partitions[range_.partition].slice(range_.first, range_.last)
        if tail is None:
            self.s.fx.reads.append(read)
        else:
            self.read_done(read, tail[0], tail[1])

    def read_done(self, read: Read, records: bytes, payloads: bytes) -> None:
        """The records have come: write their letters once the dead-letter topic is open."""
        name = dead_letter_topic(read.topic)
        if name in self.s.topics:
            self._write(read, records, payloads)
        else:
            self.s.waiting.setdefault(name, []).append(lambda: self._write(read, records, payloads))
            self.s.open(name, TopicConfig(partitions=1, segment_bytes=16 << 20, retention_ms=0))

    def letter_done(self, topic: Topic, offset: int) -> None:
        """A letter of ``topic`` was redriven and is stored after all."""
        letters = self.s.topics.get(dead_letter_topic(topic.name))
        if letters is not None:
            letters.lose(0, offset, offset, "redriven and stored")

    def topic_failed(self, name: str) -> None:
        """The dead-letter topic could not be opened: its ranges go back to their consumers, a while later."""
        for origin, group_name, range_id in [k for k in self._pending if dead_letter_topic(k[0]) == name]:
            del self._pending[origin, group_name, range_id]
            topic = self.s.topics.get(origin)
            group = topic.groups.get(group_name) if topic else None
            range_ = group.ranges.get(range_id) if group else None
            if group is not None and range_ is not None and range_.state == BURYING:
                group.make_ready(range_, self.s.now + 5.0, self.s.now)

    def read_failed(self, read: Read) -> None:
        """The records could not be read: the range is delivered again, and its consumer decides again."""
        s = self.s
        self._pending.pop((read.topic, read.group, read.range_id), None)
        topic = s.topics.get(read.topic)
        group = topic.groups.get(read.group) if topic else None
        range_ = group.ranges.get(read.range_id) if group else None
        if group is not None and range_ is not None and range_.state == BURYING:
            group.make_ready(range_, s.now + 1.0, s.now)

    def _write(self, read: Read, records: bytes, payloads: bytes) -> None:
        s = self.s
        pending = self._pending.pop((read.topic, read.group, read.range_id), None)
        topic = s.topics.get(read.topic)
        group = topic.groups.get(read.group) if topic else None
        range_ = group.ranges.get(read.range_id) if group else None
        if pending is None or topic is None or group is None or range_ is None:
            return
        dead, reason, rejected_rows = pending
        letters = s.topics[dead_letter_topic(read.topic)]
        part = letters.partitions[0]
        session_id = _session_of(topic.uuid, read.partition, read.group)
        session = s.sessions.get(session_id)
        if session is None:
            session = s.sessions[session_id] = Session(session_id, letters.name)
        session.last_ms = s.steady_ms
        chosen = None if dead is None else set(dead)
        missing = len(chosen) if chosen is not None else read.last - read.first + 1
        dead_rows = 0
        at = 0
        for offset, sid, seq, _, rows, time_ms, length in RECORD_STRUCT.iter_unpack(records):
            payload = payloads[at : at + length]
            at += length
            if chosen is not None and offset not in chosen:
                continue
            missing -= 1
            dead_rows += rows
            # Offsets begin at 0, seqs at 1: seq 0 would lie below every floor.
            if session.knows(offset + 1):
                continue
            letter = envelope(
                {
                    "topic": topic.name,
                    "log": topic.uuid.hex(),
                    "partition": read.partition,
                    "offset": offset,
                    "group": read.group,
                    "session": sid,
                    "seq": seq,
                    "rows": rows,
                    "appended_ms": time_ms,
                    "reason": reason[:1000],
                },
                bytes(payload),
            )
            session.learn(offset + 1, 0)
            letters.appends.append(
                (KIND_DATA, 0, part.next_offset, session_id, offset + 1, 0, rows, s.wall_ms, crc32c(letter), letter)
            )
            part.append(
                rows,
                RECORD_STRUCT.pack(part.next_offset, session_id, offset + 1, 0, rows, s.wall_ms, len(letter)),
                letter,
            )
            letters.messages_total += 1
            s.counters.dead_records += 1
        # What the disk no longer held; to that of a delivery, if only some of its records are dead.
        range_.lost = missing if chosen is None else range_.lost + missing
        s.unmetered_bytes += len(payloads)
        # The settlement waits for this commit of the letters: after it the letters are durable.
        letters.commit.settles.append((topic.name, group.name, read.range_id, rejected_rows, dead_rows))


def _session_of(uuid: bytes, partition: int, group: str) -> int:
    digest = hashlib.blake2b(uuid + partition.to_bytes(2, "little") + group.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
