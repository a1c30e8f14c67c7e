"""A consumer group: sealed ranges, who holds them, and what they have been through.

Theory. A delivery is a *sealed range* [first, last] of one partition with an id that is never reused (R21). A seal is
written to the log in the same commit as the records it covers, or a later one, and the range is delivered only when
that commit is durable: after any crash the same bounds are delivered again, never others. An ack is written too, but
nobody waits for it; an ack that a crash loses makes the range ``maybe_repeat``, which the collector checks (R13).

    sealing --(commit durable)--> ready --(member with credit)--> held --(SETTLE)--> gone
                                    ^                               |
                                    +--(NACK, death, BYE: backoff)--+

Ranges of a partition are cut one after the other, so the group's floor in a partition is the first offset of its
oldest outstanding range, or what is to be sealed next.

Three counters (R22): deliveries; deaths (the consumer vanished or its lease ran out); failures (an explicit NACK for
the data). Only failures count to ``max_attempts``.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

from zmqbroker.core.config import GroupConfig

SEALING: Final = 0
READY: Final = 1
HELD: Final = 2
BURYING: Final = 3
"""Being written to the dead-letter topic; settled when that is durable (R26)."""
DELAYED: Final = 4


class Range:
    """One sealed range."""

    __slots__ = (
        "again",
        "bytes",
        "deaths",
        "deliveries",
        "failures",
        "first",
        "group",
        "holder",
        "id",
        "last",
        "letter",
        "lost",
        "maybe_repeat",
        "not_before_s",
        "parent",
        "partition",
        "rows",
        "state",
        "taken_s",
        "waiting",
    )

    def __init__(self, id: int, group: str, partition: int, first: int, last: int, rows: int, bytes: int) -> None:
        self.id = id
        self.group = group
        self.partition = partition
        self.first = first
        self.last = last
        self.rows = rows
        self.bytes = bytes
        self.deliveries = 0
        self.deaths = 0
        self.failures = 0
        self.state = SEALING
        self.holder: Member | None = None
        self.maybe_repeat = False
        self.not_before_s = 0.0
        self.taken_s = 0.0
        self.waiting = False
        self.parent = 0
        """Id of the range that this one was split from: an ack of it settles this too (R21)."""
        self.again = False
        """Given out once more on an operator's word: its token must not meet that of the first time (R27)."""
        self.letter: int | None = None
        """Offset of the dead letter that is redriven; None for what lies in the topic itself (R26)."""
        self.lost = 0
        """Offsets at its beginning that the disk no longer held when it was last read to be delivered (R28)."""

    def to_state(self) -> list[object]:
        """What a snapshot keeps."""
        return [
            self.id,
            self.partition,
            self.first,
            self.last,
            self.rows,
            self.bytes,
            self.deliveries,
            self.deaths,
            self.failures,
            self.parent,
            self.letter,
            self.again,
        ]


class Member:
    """One consumer of a group: a process that said SUBSCRIBE, found again by ``id`` when it reconnects."""

    __slots__ = (
        "conn",
        "credit",
        "delivered",
        "generation",
        "gone_s",
        "holding",
        "id",
        "last_seen_s",
        "name",
        "since_s",
    )

    def __init__(self, id: int, conn: bytes, generation: int, name: str, now: float) -> None:
        self.id = id
        self.conn = conn
        self.generation = generation
        self.name = name
        self.credit = 0
        """Deliveries allowed since SUBSCRIBED, absolute (R6)."""
        self.delivered = 0
        self.last_seen_s = now
        self.since_s = now
        """When its conversation began."""
        self.gone_s: float | None = None
        """When its connection was found to be gone; it has the grace to come back."""
        self.holding: dict[int, Range] = {}

    @property
    def has_credit(self) -> bool:
        return self.gone_s is None and self.delivered < self.credit


class GroupPartition:
    """Where a group stands in one partition."""

    __slots__ = (
        "bytes_before",
        "cutting",
        "outstanding",
        "repeat_below",
        "rows_before",
        "sealed_next",
        "waiting_since_s",
    )

    def __init__(self, sealed_next: int, rows_before: int, bytes_before: int, repeat_below: int = 0) -> None:
        self.sealed_next = sealed_next
        self.repeat_below = repeat_below
        """What lies below may have been delivered before (a reset, a lost journal, another group), so it may be in the
        store already (R13, R27)."""
        self.rows_before = rows_before
        """Running total of the partition's rows before ``sealed_next``."""
        self.bytes_before = bytes_before
        self.waiting_since_s: float | None = None
        """Since when something waits to be sealed."""
        self.cutting = False
        """The log was asked where the next range ends, because the tail no longer holds it."""
        self.outstanding: dict[int, Range] = {}

    @property
    def floor(self) -> int:
        """Every offset below is settled for this group."""
        if not self.outstanding:
            return self.sealed_next
        return min(min(r.first for r in self.outstanding.values()), self.sealed_next)


class Group:
    """State of one consumer group. Changed only by the core."""

    def __init__(self, name: str, config: GroupConfig, generation: int, parts: list[GroupPartition]) -> None:
        self.name = name
        self.config = config
        self.generation = generation
        self.parts = parts
        self.members: dict[bytes, Member] = {}
        self.ranges: dict[int, Range] = {}
        self.ready: deque[Range] = deque()
        self.delayed: list[tuple[float, int]] = []
        self.held = 0
        self.sealing = 0
        self.turn: deque[bytes] = deque()
        self.next_partition = 0
        self.last_seal_s = -1e9
        self.last_ack_s: float | None = None
        self.last_member_s = 0.0
        self.paused = False
        self.paused_at_s = 0.0
        self.quiet_until_s = 0.0
        """After a reset: until all who held something have heard that they hold it no more (R14)."""
        self.owners: dict[int, int] = {}
        """Ordered mode: the member (its id) that each partition belongs to (R25)."""
        self.order_breaks = 0
        self.lost_messages = 0
        """Offsets that this group should have been given and that are no more (R28)."""
        self.settled_rows = 0
        self.settled_messages = 0
        self.rejected_rows = 0
        self.dead_rows = 0
        self.redelivered = 0

    def to_state(self) -> dict[str, object]:
        return {
            "name": self.name,
            "config": self.config.to_json(),
            "generation": self.generation,
            "paused": self.paused,
            "parts": [[p.sealed_next, p.rows_before, p.bytes_before, p.repeat_below] for p in self.parts],
            "ranges": [r.to_state() for r in self.ranges.values()],
            "counters": [
                self.settled_rows,
                self.settled_messages,
                self.rejected_rows,
                self.dead_rows,
                self.lost_messages,
            ],
        }

    @classmethod
    def from_state(cls, state: dict) -> Group:
        parts = [GroupPartition(*p) for p in state["parts"]]
        group = cls(state["name"], GroupConfig.from_json(state["config"]), state["generation"], parts)
        group.paused = state.get("paused", False)
        counters = [*state["counters"], 0]  # the fifth came later
        group.settled_rows, group.settled_messages, group.rejected_rows, group.dead_rows, group.lost_messages = (
            counters[:5]
        )
        for r in state["ranges"]:
            range_ = Range(r[0], group.name, *r[1:6])
            range_.deliveries, range_.deaths, range_.failures, range_.parent, range_.letter = r[6:11]
            range_.again = r[11]
            group.add(range_)
        return group

    def add(self, range_: Range) -> None:
        """A range was sealed."""
        self.ranges[range_.id] = range_
        self.parts[range_.partition].outstanding[range_.id] = range_
        self.sealing += range_.state == SEALING

    def remove(self, range_: Range) -> None:
        """The range is settled."""
        self.release(range_)
        if range_.state == SEALING:
            self.sealing -= 1
        range_.state = BURYING  # whatever queue still names it will pass it over
        self.ranges.pop(range_.id, None)
        self.parts[range_.partition].outstanding.pop(range_.id, None)

    def make_ready(self, range_: Range, not_before_s: float, now: float) -> None:
        """The range may be delivered, at once or from ``not_before_s``."""
        if range_.state == SEALING:
            self.sealing -= 1
        self.release(range_)
        if not_before_s > now:
            range_.state = DELAYED
            range_.not_before_s = not_before_s
            heapq.heappush(self.delayed, (not_before_s, range_.id))
        else:
            range_.state = READY
            self.ready.append(range_)

    def resume(self, now: float) -> None:
        """Clocks go on where they stood when the group was paused (R25)."""
        paused_s = now - self.paused_at_s
        self.paused = False
        self.delayed = [(at + paused_s, range_id) for at, range_id in self.delayed]
        for range_ in self.ranges.values():
            range_.not_before_s += paused_s
            range_.taken_s += paused_s
        for gp in self.parts:
            gp.waiting_since_s = None

    def owner(self, partition: int) -> Member | None:
        """Ordered mode: whose ``partition`` is, when a range of it is to be given out. None while nobody is there.

        It stays with its member while that one lives and has no more than its share; so what is given out again after
        a failure goes to the same one, and a newcomer gets its share as ranges are acked (R25).
        """
        members = {m.id: m for m in self.members.values()}
        if not members:
            return None
        owned: dict[int, int] = dict.fromkeys(members, 0)
        for member_id in self.owners.values():
            if member_id in owned:
                owned[member_id] += 1
        share = -(-len(self.parts) // len(members))
        owner = members.get(self.owners.get(partition, -1))
        if owner is None or owned[owner.id] > share:
            owner = members[min(owned, key=lambda i: (owned[i], i))]
            self.owners[partition] = owner.id
        return owner

    def hold(self, range_: Range, member: Member, now: float) -> None:
        range_.state = HELD
        range_.holder = member
        range_.taken_s = now
        range_.waiting = False
        member.holding[range_.id] = range_
        self.held += 1

    def release(self, range_: Range) -> None:
        """Nobody holds the range any more."""
        if range_.holder is not None:
            range_.holder.holding.pop(range_.id, None)
            range_.holder = None
            self.held -= 1

    def wake_delayed(self, now: float) -> None:
        while self.delayed and self.delayed[0][0] <= now:
            _, range_id = heapq.heappop(self.delayed)
            range_ = self.ranges.get(range_id)
            if range_ is not None and range_.state == DELAYED and range_.not_before_s <= now:
                range_.state = READY
                self.ready.append(range_)

    def next_ready(self) -> Range | None:
        """Take the next range that is still to be delivered."""
        while self.ready:
            range_ = self.ready.popleft()
            if range_.state == READY and range_.id in self.ranges:
                return range_
        return None

    @property
    def ready_count(self) -> int:
        return len(self.ready)

    @property
    def idle(self) -> bool:
        """Nothing of the whole group is sealed and unsettled (R24)."""
        return not self.ranges

    def next_member(self) -> Member | None:
        """The next member with credit, in turn."""
        turn = self.turn
        for _ in range(len(turn)):
            conn = turn[0]
            turn.rotate(-1)
            member = self.members.get(conn)
            if member is not None and member.has_credit:
                return member
        return None

    @property
    def free_credit(self) -> int:
        """Deliveries that members could take beyond what is already sealed and waiting."""
        return (
            sum(m.credit - m.delivered for m in self.members.values() if m.has_credit) - len(self.ready) - self.sealing
        )

    def enter(self, member: Member) -> None:
        self.members[member.conn] = member
        self.turn.append(member.conn)

    def leave(self, member: Member) -> None:
        self.members.pop(member.conn, None)
        if member.conn in self.turn:
            self.turn.remove(member.conn)
