"""A topic: its partitions, groups, and how its state is rebuilt from its log.

State is a snapshot (the first record of every segment) and what follows it. A snapshot is taken before the first
append of the hand-over that rolls the segment, so it says exactly what lies before it in the log.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from zmqbroker.core.config import GroupConfig, TopicConfig
from zmqbroker.core.group import SEALING, Group, GroupPartition, Range
from zmqbroker.core.partition import Partition
from zmqbroker.core.session import Session

if TYPE_CHECKING:
    from zmqbroker.storage.interface import Recovered

KIND_DATA: Final = 1
KIND_CONTROL: Final = 2
KIND_GAP: Final = 4

# Journal entries: JSON arrays, the first element says which.
SEAL: Final = "s"  # group, range id, partition, first, last, rows, bytes
SETTLED: Final = "a"  # group, range id, rows rejected, rows dead
COUNTED: Final = "c"  # group, range id, deliveries, deaths, failures
SPLIT: Final = "p"  # group, parent id, [[id, first, last, rows, bytes], ...]
GROUP: Final = "g"  # the whole state of a group that was made or reset
GROUP_GONE: Final = "x"  # group
EPOCH: Final = "e"  # seal epoch
FORGET: Final = "v"  # session id, seq: its payload failed the CRC after a snapshot may have counted it as known


class Commit:
    """A hand-over that is not durable yet: whom to ack and what to deliver when it is."""

    __slots__ = ("acks", "data", "ends", "id", "sealed", "settles", "written")

    def __init__(self, id: int) -> None:
        self.id = id
        self.acks: dict[int, list[Any]] = {}
        """session id -> [Session, generation, credit bytes to free, ranges of seqs]."""
        self.sealed: list[Range] = []
        self.ends: list[int] = []
        self.data: list[tuple] = []
        """The hand's appends, kept until they are written to know whose payload was bad."""
        self.settles: list[tuple[str, str, int, int, int]] = []
        """(topic, group, range id, rejected rows, dead rows) to settle once this is durable: buried ranges."""
        self.written = False

    @property
    def empty(self) -> bool:
        return not (self.acks or self.sealed or self.settles)


class Topic:
    """State of one topic. Changed only by the core."""

    def __init__(self, name: str, config: TopicConfig, uuid: bytes) -> None:
        self.name = name
        self.config = config
        self.uuid = uuid
        self.epoch = 1
        self.partitions = [Partition(i) for i in range(config.partitions)]
        self.groups: dict[str, Group] = {}
        self.next_range_id = 1
        self.sticky = 0
        self.stopped = ""
        self.disk_bytes = 0
        self.disk_full = False
        self.wants_roll = False
        self.roll_snapshot: bytes | None = None
        self.next_commit = 1
        self.commit = Commit(1)
        self.appends: list[tuple] = []
        self.commits: deque[Commit] = deque()
        self.messages_total = 0
        self.rate_rows = 0
        self.rows_per_s = 0.0
        self.duplicates = 0
        self.draining = False
        self.gaps: deque[tuple[int, int, int, str]] = deque(maxlen=1000)
        """The latest gaps: (partition, first, last, reason)."""
        self.lost_messages = 0

    @property
    def rows_total(self) -> int:
        return sum(p.rows_total for p in self.partitions)

    @property
    def bytes_total(self) -> int:
        return sum(p.bytes_total for p in self.partitions)

    def journal(self, *entry: object) -> None:
        """Put an entry into the commit that is being gathered."""
        self.appends.append(
            (KIND_CONTROL, 0xFFFF, 0, 0, 0, 0, 0, 0, -1, json.dumps(entry, separators=(",", ":")).encode())
        )

    def lose(self, partition: int, first: int, last: int, reason: str) -> None:
        """Write down that the disk has lost records, so that it is known and counted after a restart too (R28)."""
        self.gaps.append((partition, first, last, reason))
        self.lost_messages += last - first + 1
        self.appends.append((KIND_GAP, partition, first, 0, 0, last, 0, 0, -1, reason.encode()[:1000]))

    def new_range(self, group: str, partition: int, first: int, last: int, rows: int, bytes: int) -> Range:
        range_ = Range(self.next_range_id, group, partition, first, last, rows, bytes)
        self.next_range_id += 1
        return range_

    def floors(self) -> list[int] | None:
        """Per partition, the offset below which every durable group is done; None holds everything (R20)."""
        durable = [g for g in self.groups.values() if g.config.durable]
        if not durable:
            return None
        return [min(g.parts[i].floor for g in durable) for i in range(len(self.partitions))]

    def snapshot(self, sessions: list[Session]) -> bytes:
        """Everything that recovery must know, besides the records themselves."""
        state = {
            "v": 1,
            "epoch": self.epoch,
            "next_range_id": self.next_range_id,
            "messages_total": self.messages_total,
            "partitions": [[p.next_offset, p.rows_total, p.bytes_total] for p in self.partitions],
            "groups": [g.to_state() for g in self.groups.values() if g.config.durable],
            "sessions": [s.state() for s in sessions],
        }
        return json.dumps(state, separators=(",", ":")).encode()

    def recover(self, recovered: Recovered, now: float) -> dict[int, Session]:
        """Rebuild from the log; returns the sessions known to it. Every outstanding range becomes doubtful (R13)."""
        sessions: dict[int, Session] = {}
        if recovered.snapshot:
            state = json.loads(recovered.snapshot)
            self.epoch = state["epoch"]
            self.next_range_id = state["next_range_id"]
            self.messages_total = state["messages_total"]
            for part, (next_offset, rows, size) in zip(self.partitions, state["partitions"], strict=False):
                part.next_offset, part.rows_total, part.bytes_total = next_offset, rows, size
            for group_state in state["groups"]:
                self.groups[group_state["name"]] = Group.from_state(group_state)
            for session_state in state["sessions"]:
                sessions[session_state[0]] = Session.restore(session_state, self.name)
        for entry in recovered.entries:
            if entry[0] == "control":
                self.apply(json.loads(entry[1]), sessions)
            else:
                self._replay(entry[1], entry[2], sessions)
        for part, next_offset in zip(self.partitions, recovered.next_offsets, strict=True):
            sealed = max((g.parts[part.index].sealed_next for g in self.groups.values()), default=0)
            part.next_offset = max(part.next_offset, next_offset, sealed)
            part.durable_offset = part.base = part.next_offset
        for gap in recovered.gaps:
            self.gaps.append(tuple(gap))
            self.lost_messages += gap.last - gap.first + 1
        for group in self.groups.values():
            group.last_member_s = now
            for range_ in list(group.ranges.values()):
                range_.maybe_repeat = True
        return sessions

    def _replay(self, partition: int, records: Any, sessions: dict[int, Session]) -> None:
        part = self.partitions[partition]
        for offset, sid, seq, lowest, rows, time_ms, length in records.tolist():
            session = sessions.get(sid)
            if session is None:
                session = sessions[sid] = Session(sid, self.name)
            session.learn(seq, lowest)
            session.last_ms = time_ms
            part.next_offset = max(part.next_offset, offset + 1)
            part.rows_total += rows
            part.bytes_total += length
            self.messages_total += 1

    def apply(self, entry: list[Any], sessions: dict[int, Session]) -> None:
        """Replay one journal entry."""
        kind = entry[0]
        if kind == FORGET:
            if entry[1] in sessions:
                sessions[entry[1]].forget(entry[2])
            return
        if kind == GROUP:
            self.groups[entry[1]["name"]] = Group.from_state(entry[1])
            return
        if kind == EPOCH:
            self.epoch = entry[1]
            return
        group = self.groups.get(entry[1])
        if group is None:
            return
        if kind == SEAL:
            _, name, range_id, partition, first, last, rows, size = entry
            group.add(Range(range_id, name, partition, first, last, rows, size))
            gp = group.parts[partition]
            gp.sealed_next = last + 1
            gp.rows_before += rows
            gp.bytes_before += size
            self.next_range_id = max(self.next_range_id, range_id + 1)
        elif kind == SETTLED:
            range_ = group.ranges.get(entry[2])
            if range_ is not None:
                self.count_settled(group, range_, entry[3], entry[4])
                group.remove(range_)
        elif kind == COUNTED:
            range_ = group.ranges.get(entry[2])
            if range_ is not None:
                range_.deliveries, range_.deaths, range_.failures = entry[3:6]
        elif kind == SPLIT:
            parent = group.ranges.get(entry[2])
            if parent is not None:
                self.split(group, parent, entry[3])
        elif kind == GROUP_GONE:
            self.groups.pop(entry[1], None)

    @staticmethod
    def count_settled(group: Group, range_: Range, rejected_rows: int, dead_rows: int) -> None:
        group.settled_rows += range_.rows
        group.settled_messages += range_.last - range_.first + 1
        group.rejected_rows += rejected_rows
        group.dead_rows += dead_rows

    def split(self, group: Group, parent: Range, children: list[list[int]]) -> list[Range]:
        """Replace a range by ranges within it; they are doubtful as the parent was (R14)."""
        group.remove(parent)
        made = []
        for range_id, first, last, rows, size in children:
            child = Range(range_id, group.name, parent.partition, first, last, rows, size)
            child.maybe_repeat = True
            group.add(child)
            made.append(child)
            self.next_range_id = max(self.next_range_id, range_id + 1)
        return made


def make_group(topic: Topic, name: str, config: GroupConfig, start: str) -> Group:
    """A new group at ``earliest`` or ``latest``. What lies before ``earliest`` may need measuring (see Core)."""
    parts = []
    for part in topic.partitions:
        if start == "latest":
            at = part.next_offset if config.durable else part.durable_offset
            parts.append(GroupPartition(at, *totals_before(part, at)))
        else:
            parts.append(GroupPartition(part.first_offset, 0, 0))
    return Group(name, config, 1, parts)


def totals_before(part: Partition, offset: int) -> tuple[int, int]:
    """Running totals before an offset that lies in the tail or at the end."""
    i = offset - part.base
    if i <= 0:
        if not part.entries:
            return part.rows_total, part.bytes_total
        first = part.entries[0]
        # The tail's first entry holds the totals after itself; its own rows stand in its packed record.
        rows = int.from_bytes(first[2][32:36], "little")
        return first[0] - rows, first[1] - len(first[3] or b"")
    entry = part.entries[i - 1]
    return entry[0], entry[1]


__all__ = ["SEALING", "Commit", "Topic", "make_group", "totals_before"]
