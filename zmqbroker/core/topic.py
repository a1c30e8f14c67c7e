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
from zmqbroker.core.session import Session, ranges_of
from zmqbroker.errors import NewerFormat

if TYPE_CHECKING:
    from zmqbroker.storage.interface import Recovered

KIND_DATA: Final = 1
KIND_CONTROL: Final = 2
KIND_GAP: Final = 4
DEAD_LETTERS: Final = ".dlq"
"""What the name of a dead-letter topic ends with."""
_STATE_VERSION: Final = 1
"""Of the snapshot and of the journal: a new kind of entry is a new version."""

# Journal entries: JSON arrays, the first element says which.
SEAL: Final = "s"  # group, range id, partition, first, last, rows, bytes
SETTLED: Final = "a"  # group, range id, rows rejected, rows dead, offsets that were lost
COUNTED: Final = "c"  # group, range id, deliveries, deaths, failures
SPLIT: Final = "p"  # group, parent id, [[id, first, last, rows, bytes], ...]
GROUP: Final = "g"  # the whole state of a group that was made or reset
GROUP_GONE: Final = "x"  # group
EPOCH: Final = "e"  # seal epoch, next range id, offsets (a partition each) below which everything is doubtful
RESENT: Final = "r"  # partition, offset of a batch that another log may hold too
SKIPPED: Final = "k"  # group, partition, offset: what lay before it is no more
PAUSED: Final = "z"  # group, whether it is paused
REDRIVEN: Final = "l"  # group, range id, partition, offset, rows, bytes, offset of the letter
FORGET: Final = "v"  # session id, seq: its payload failed the CRC after a snapshot may have counted it as known


class Commit:
    """A hand-over that is not durable yet: whom to ack and what to deliver when it is."""

    __slots__ = ("acks", "data", "ends", "id", "rolls", "sealed", "settles", "written")

    def __init__(self, id: int) -> None:
        self.id = id
        self.rolls = False
        """Its hand carries a snapshot."""
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
        self.sealed_ever = [0] * config.partitions
        """Per partition, the offset below which some durable group has sealed: what a group made later meets there may
        be in its store already, put there under another name (R13)."""
        self.letters = Letters() if name.endswith(DEAD_LETTERS) else None
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
        self.lost_at_start = 0
        """Offsets in gaps when the log was opened: batches that its sessions no longer know of."""
        self._certain: dict[str, list[int]] = {}
        """While it is recovered: where each group last stood without the help of later entries, by partition."""

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
        self._lost(partition, first, last, reason)
        self.appends.append((KIND_GAP, partition, first, 0, 0, last, 0, 0, -1, reason.encode()[:1000]))

    def _lost(self, partition: int, first: int, last: int, reason: str) -> None:
        self.gaps.append((partition, first, last, reason))
        if self.letters is not None:
            self.letters.done(first, last)
        else:
            self.lost_messages += last - first + 1

    def new_range(self, group: str, partition: int, first: int, last: int, rows: int, bytes: int) -> Range:
        range_ = Range(self.next_range_id, group, partition, first, last, rows, bytes)
        self.next_range_id += 1
        return range_

    def floors(self) -> list[int] | None:
        """Per partition, the offset below which every durable group is done; None holds everything (R20)."""
        durable = [g for g in self.groups.values() if g.config.durable]
        if self.letters is not None:
            floors = [self.letters.floor] + [p.next_offset for p in self.partitions[1:]]
        elif durable:
            floors = [p.next_offset for p in self.partitions]
        else:
            return None
        for group in durable:
            floors = [min(floor, gp.floor) for floor, gp in zip(floors, group.parts, strict=True)]
        return floors

    @property
    def settled(self) -> bool:
        """Nothing is on its way to the log, so that a snapshot may close it: it knows nothing that is not there."""
        return not (self.stopped or self.appends or self.commits)

    def retention(self, wall_ms: int) -> tuple[list[int] | None, int, int | None]:
        """What :meth:`TopicLog.drop_before` may drop now: (floors or None for nothing, older than, keep bytes)."""
        config = self.config
        if config.overflow == "drop-oldest" and (self.disk_full or self.disk_bytes > config.disk_bytes_max * 0.9):
            # The oldest goes, whoever has not had it yet: groups step over it and are told (R28).
            keep = int(min(config.disk_bytes_max, self.disk_bytes if self.disk_full else config.disk_bytes_max) * 0.85)
            return [p.durable_offset for p in self.partitions], 0, keep
        # What is kept for replay alone must never be what stops producers: a million rows a second fill the cap in
        # less than the time it is kept.
        keep_bytes = config.retention_bytes or config.disk_bytes_max // 2
        return self.floors(), wall_ms - config.retention_ms, keep_bytes

    def snapshot(self, sessions: list[Session]) -> bytes:
        """Everything that recovery must know, besides the records themselves."""
        state = {
            "v": _STATE_VERSION,
            "epoch": self.epoch,
            "next_range_id": self.next_range_id,
            "messages_total": self.messages_total,
            "partitions": [[p.next_offset, p.rows_total, p.bytes_total] for p in self.partitions],
            "groups": [g.to_state() for g in self.groups.values() if g.config.durable],
            "sessions": [s.state() for s in sessions],
            "sealed_ever": self.sealed_ever,
            "resent": [p.resent for p in self.partitions],
        }
        return json.dumps(state, separators=(",", ":")).encode()

    def recover(self, recovered: Recovered, now: float) -> dict[int, Session]:
        """Rebuild from the log; returns the sessions known to it. Every outstanding range becomes doubtful (R13).

        Raises :class:`NewerFormat` where a later version wrote the snapshot.
        """
        sessions: dict[int, Session] = {}
        if recovered.snapshot:
            state = json.loads(recovered.snapshot)
            if state["v"] > _STATE_VERSION:
                raise NewerFormat(f"the journal of topic {self.name}", state["v"], _STATE_VERSION)
            self.epoch = state["epoch"]
            self.next_range_id = state["next_range_id"]
            self.messages_total = state["messages_total"]
            for part, (next_offset, rows, size) in zip(self.partitions, state["partitions"], strict=False):
                part.next_offset, part.rows_total, part.bytes_total = next_offset, rows, size
            for group_state in state["groups"]:
                self._begin(Group.from_state(group_state))
            for session_state in state["sessions"]:
                sessions[session_state[0]] = Session.restore(session_state, self.name)
            self.sealed_ever = state["sealed_ever"]
            for part, resent in zip(self.partitions, state["resent"], strict=False):
                part.resent = resent
        for entry in recovered.entries:
            if entry[0] == "control":
                self.apply(json.loads(entry[1]), sessions)
            else:
                self._replay(entry[1], entry[2], sessions)
        for part, next_offset in zip(self.partitions, recovered.next_offsets, strict=True):
            sealed = max((g.parts[part.index].sealed_next for g in self.groups.values()), default=0)
            part.next_offset = max(part.next_offset, next_offset, sealed)
            part.durable_offset = part.base = part.next_offset
        for part, first_offset in zip(self.partitions, recovered.first_offsets, strict=True):
            part.first_offset = first_offset
        for gap in recovered.gaps:
            self._lost(*gap)
            self.lost_at_start += gap.last - gap.first + 1
        for group in self.groups.values():
            group.last_member_s = now
            for range_ in list(group.ranges.values()):
                range_.maybe_repeat = True
                first_held = self.partitions[range_.partition].first_offset
                if range_.letter is None and first_held > range_.first:
                    # It may be settled by whoever holds it still: what was dropped of it must be counted then, too.
                    range_.lost = min(first_held, range_.last + 1) - range_.first
        if recovered.journal_damaged:
            self._doubt_everything()
        return sessions

    def _begin(self, group: Group) -> None:
        """A group's whole state, in a snapshot or in an entry of its own: what stands there needs no other entry."""
        self.groups[group.name] = group
        self._certain[group.name] = [gp.floor for gp in group.parts]
        # Replayed ranges have no other entry that tells of their ids.
        self.next_range_id = max([self.next_range_id, *(id_ + 1 for id_ in group.ranges)])

    def _doubt_everything(self) -> None:
        """Seals and acks were lost with the journal: what was given out, under which bounds and ids, is not known.

        So each group goes back to where it last stood for certain, everything that is there counts as given out once
        (R13), and ids, generations and tokens begin where none has been (R21).
        """
        self.epoch += 1
        self.next_range_id += 1 << 32
        self.sealed_ever = [p.next_offset for p in self.partitions]
        self.journal(EPOCH, self.epoch, self.next_range_id, self.sealed_ever)
        for group in self.groups.values():
            for range_ in list(group.ranges.values()):
                group.remove(range_)
            group.generation += 1 << 16
            starts = self._certain[group.name]
            group.parts = [
                GroupPartition(at, 0, 0, part.next_offset) for part, at in zip(self.partitions, starts, strict=True)
            ]
            self.journal(GROUP, group.to_state())

    def _replay(self, partition: int, records: Any, sessions: dict[int, Session]) -> None:
        part = self.partitions[partition]
        for offset, sid, seq, lowest, rows, _, length in records.tolist():
            session = sessions.get(sid)
            if session is None:
                session = sessions[sid] = Session(sid, self.name)
            session.learn(seq, lowest)
            session.idle_ms = 0
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
            self._begin(Group.from_state(entry[1]))
            return
        if kind == EPOCH:
            _, self.epoch, self.next_range_id, self.sealed_ever = entry
            for each in self.groups.values():
                for gp, below in zip(each.parts, self.sealed_ever, strict=True):
                    gp.repeat_below = max(gp.repeat_below, below)
            return
        if kind == RESENT:
            self.partitions[entry[1]].resent.append(entry[2])
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
            self.sealed_ever[partition] = max(self.sealed_ever[partition], last + 1)
        elif kind == SETTLED:
            range_ = group.ranges.get(entry[2])
            if range_ is not None:
                self.count_settled(group, range_, *entry[3:])
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
        elif kind == SKIPPED:
            self.skip(group, entry[2], entry[3])
        elif kind == PAUSED:
            group.paused = entry[2]
        elif kind == REDRIVEN:
            self.redriven(group, *entry[2:])

    @staticmethod
    def skip(group: Group, partition: int, to: int) -> int:
        """What the group has not sealed below ``to`` is no more; how many offsets that is."""
        gp = group.parts[partition]
        lost = max(0, to - gp.sealed_next)
        group.lost_messages += lost
        gp.sealed_next += lost
        return lost

    def redriven(
        self, group: Group, range_id: int, partition: int, offset: int, rows: int, size: int, letter: int
    ) -> Range:
        """A dead letter goes to its group again, under the address that it had (R26)."""
        range_ = Range(range_id, group.name, partition, offset, offset, rows, size)
        range_.letter = letter
        range_.maybe_repeat = range_.again = True
        group.add(range_)
        self.next_range_id = max(self.next_range_id, range_id + 1)
        return range_

    @staticmethod
    def count_settled(group: Group, range_: Range, rejected_rows: int, dead_rows: int, lost: int = 0) -> None:
        group.settled_rows += range_.rows
        group.settled_messages += range_.last - range_.first + 1
        group.rejected_rows += rejected_rows
        group.dead_rows += dead_rows
        group.lost_messages += lost

    def split(self, group: Group, parent: Range, children: list[list[int]]) -> list[Range]:
        """Replace a range by ranges within it; they are doubtful as the parent was (R14)."""
        group.remove(parent)
        made = []
        for range_id, first, last, rows, size in children:
            child = Range(range_id, group.name, parent.partition, first, last, rows, size)
            child.maybe_repeat = True
            child.parent = parent.id
            group.add(child)
            made.append(child)
            self.next_range_id = max(self.next_range_id, range_id + 1)
        return made


def make_group(topic: Topic, name: str, config: GroupConfig, start: str) -> Group:
    """A new group at ``earliest`` or ``latest``. What lies before ``earliest`` may need measuring (see Core)."""
    parts = []
    for part, sealed_ever in zip(topic.partitions, topic.sealed_ever, strict=True):
        at = part.first_offset
        if start == "latest":
            at = part.next_offset if config.durable else part.durable_offset
        repeat_below = sealed_ever if config.durable else 0
        parts.append(GroupPartition(at, *totals_before(part, at), repeat_below))
    return Group(name, config, 1, parts)


def totals_before(part: Partition, offset: int) -> tuple[int, int]:
    """Running totals before an offset that lies in the tail or at the end; below the tail, those before the tail."""
    i = offset - part.base
    if i > 0:
        entry = part.entries[i - 1]
        return entry[0], entry[1]
    if not part.entries:
        return part.rows_total, part.bytes_total
    first = part.entries[0]
    # The tail's first entry holds the totals after itself; its own rows and length stand in its packed record.
    rows = int.from_bytes(first[2][32:36], "little")
    length = int.from_bytes(first[2][44:48], "little")
    return first[0] - rows, first[1] - length


class Letters:
    """Which dead letters of a dead-letter topic are still there: all but those that a gap tells of.

    A letter that was dropped, or redriven and stored, becomes a gap of its topic.
    """

    def __init__(self) -> None:
        self.floor = 0
        """Everything below is done."""
        self.above: set[int] = set()

    def done(self, first: int, last: int) -> None:
        """Offsets ``first`` to ``last`` are done with."""
        self.above.update(range(max(first, self.floor), last + 1))
        while self.floor in self.above:
            self.above.discard(self.floor)
            self.floor += 1

    def __contains__(self, offset: int) -> bool:
        return offset >= self.floor and offset not in self.above

    def live(self, end: int) -> list[list[int]]:
        """Ranges of offsets below ``end`` that are still there."""
        return ranges_of(o for o in range(self.floor, end) if o not in self.above)

    def count(self, end: int) -> int:
        return max(0, end - self.floor - len(self.above))


__all__ = ["SEALING", "Commit", "Letters", "Topic", "make_group", "totals_before"]
