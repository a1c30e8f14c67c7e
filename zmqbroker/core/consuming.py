"""The consumers' side: SUBSCRIBE, sealing, delivery, leases, and what settles or returns a range (R20-R25)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from zmqbroker import protocol
from zmqbroker.core.burying import Burying
from zmqbroker.core.config import GroupConfig
from zmqbroker.core.effects import CutAsk, Read
from zmqbroker.core.events import DELIVER as READ_TO_DELIVER
from zmqbroker.core.events import SPLIT as READ_TO_SPLIT
from zmqbroker.core.group import BURYING, HELD, READY, SEALING, Group, Member, Range
from zmqbroker.core.state import Consumer, State
from zmqbroker.core.topic import COUNTED, GROUP, GROUP_GONE, SEAL, SETTLED, Topic, make_group
from zmqbroker.core.topic import SPLIT as SPLIT_ENTRY
from zmqbroker.protocol import Code, Flag, Header, Type, WorkState

_FOREVER = 1e18
_READ_RETRY_S = 1.0


class Consuming:
    """Decides about consumers' messages, and about what goes to whom."""

    def __init__(self, state: State, burying: Burying) -> None:
        self.s = state
        self.burying = burying

    # --- conversations ---------------------------------------------------------------------------------------------

    def subscribe(self, conn: bytes, h: Header, frames: list[bytes]) -> None:
        s = self.s
        if len(frames) < 2:
            s.error(conn, h.generation, Code.BAD_MESSAGE, "SUBSCRIBE needs the topic and its options")
            return
        if s.stopping:
            s.error(conn, h.generation, Code.STOPPING, "the broker is stopping: reconnect later", h.a)
            return
        if conn not in s.peers and len(s.peers) >= s.config.connections_max:
            s.error(
                conn,
                h.generation,
                Code.BUSY,
                f"{s.config.connections_max} connections are open already: try later",
                h.a,
            )
            return
        options = protocol.unpack_options(frames[1])
        try:
            name, config, start = _read_options(options)
        except ValueError as e:
            s.error(conn, h.generation, Code.BAD_MESSAGE, str(e), h.a)
            return
        topic_name = frames[0].decode("utf-8", "replace")
        s.with_topic(conn, h.generation, topic_name, lambda t: self._enter(t, conn, h, options, name, config, start))

    def _enter(
        self, topic: Topic, conn: bytes, h: Header, options: dict[str, Any], name: str, config: GroupConfig, start: str
    ) -> None:
        s = self.s
        group = topic.groups.get(name)
        if group is None:
            group = topic.groups[name] = make_group(topic, name, config, start)
            self.measure(topic, group)
            if config.durable:
                topic.journal(GROUP, group.to_state())
        else:
            ours, theirs = group.config, config
            differs = [
                f"{field} is {getattr(ours, field)}, not {getattr(theirs, field)}"
                for field in ("mode", "durable", "max_rows", "max_bytes", "linger_ms")
                if getattr(ours, field) != getattr(theirs, field)
            ]
            if differs:
                s.error(conn, h.generation, Code.GROUP_DIFFERS, f"group {name}: {'; '.join(differs)} (R21)", h.a)
                return
        member = next((m for m in group.members.values() if m.id == h.a), None)
        if member is not None:
            self._detach(member, group)
        else:
            member = Member(h.a, conn, h.generation, str(options.get("name", ""))[:200], s.now)
        member.conn, member.generation, member.gone_s = conn, h.generation, None
        member.credit, member.delivered, member.last_seen_s = h.b, 0, s.now
        group.enter(member)
        s.peers[conn] = Consumer(topic, group, member)
        s.send(
            conn,
            protocol.pack(Type.SUBSCRIBED, h.generation, a=h.a),
            topic.uuid,
            protocol.pack_options(
                {
                    "group": name,
                    "generation": group.generation,
                    "heartbeat_s": s.config.heartbeat_s,
                    "ack_timeout_s": group.config.ack_timeout_s,
                }
            ),
        )
        # What the member says that it still holds stays with it: only what it does not know of is given out again.
        holding = {int(i) for i in options.get("holding", []) if isinstance(i, int)}
        for range_ in list(member.holding.values()):
            if range_.id not in holding:
                self._return(topic, group, range_, s.now)
        for range_id in holding:
            found = group.ranges.get(range_id)
            if found is not None and found.holder is None and found.state not in (SEALING, BURYING):
                group.hold(found, member, s.now)

    def _detach(self, member: Member, group: Group) -> None:
        self.s.peers.pop(member.conn, None)
        group.leave(member)

    def credit(self, peer: Consumer, h: Header) -> None:
        peer.member.credit = h.b

    def gone(self, conn: bytes) -> None:
        """The connection cannot be written to any more. A consumer has a short grace to come back with its ranges."""
        peer = self.s.peers.get(conn)
        if isinstance(peer, Consumer) and peer.member.gone_s is None:
            peer.member.gone_s = self.s.now

    def bye(self, peer: Consumer) -> None:
        """A consumer leaves in good order: its ranges go on at once, and nobody has died."""
        self._remove(peer, died=False)

    def _remove(self, peer: Consumer, died: bool) -> None:
        s = self.s
        member, group, topic = peer.member, peer.group, peer.topic
        self._detach(member, group)
        for range_ in list(member.holding.values()):
            if died:
                s.counters.deaths += 1
                range_.deaths += 1
                self._count(topic, group, range_)
            self._return(topic, group, range_, s.now)
        if not group.members:
            group.last_member_s = s.now
            if not group.config.durable:
                topic.groups.pop(group.name, None)

    def _count(self, topic: Topic, group: Group, range_: Range) -> None:
        if group.config.durable:
            topic.journal(COUNTED, group.name, range_.id, range_.deliveries, range_.deaths, range_.failures)

    def _return(self, topic: Topic, group: Group, range_: Range, not_before_s: float) -> None:
        """A range that somebody held goes back: to the queue, or into pieces if it has killed too often."""
        range_.maybe_repeat = True
        config = group.config
        if range_.deaths >= config.max_deaths or range_.failures >= config.max_attempts:
            if range_.last > range_.first:
                self._ask_split(topic, group, range_)
            else:
                reason = "its consumers died" if range_.deaths >= config.max_deaths else "its consumers failed"
                self.burying.bury(topic, group, range_, None, f"{reason} {max(range_.deaths, range_.failures)} times")
            return
        group.make_ready(range_, not_before_s, self.s.now)

    # --- what consumers say of their ranges ------------------------------------------------------------------------

    def settle(self, peer: Consumer, h: Header, frames: list[bytes]) -> None:
        """ACK of a range, from any attempt of this group generation (R21), perhaps with records to dead-letter."""
        topic, group = peer.topic, peer.group
        if h.f != group.generation:
            return
        range_ = group.ranges.get(h.a)
        if range_ is None or range_.state == BURYING:
            return
        if h.n:
            if not frames:
                raise protocol.ProtocolError(Code.BAD_MESSAGE, "SETTLE names no offsets of its dead records")
            dead = [o for o in protocol.unpack_offsets(frames[0], h.n) if range_.first <= o <= range_.last]
            reason = frames[1].decode("utf-8", "replace") if len(frames) > 1 else ""
            if dead:
                self.burying.bury(topic, group, range_, dead, reason, rejected_rows=h.b)
                return
        self.settled(topic, group, range_, h.b, 0)

    def settled(self, topic: Topic, group: Group, range_: Range, rejected_rows: int, dead_rows: int) -> None:
        """The range is done."""
        s = self.s
        if group.config.durable:
            topic.journal(SETTLED, group.name, range_.id, rejected_rows, dead_rows)
        topic.count_settled(group, range_, rejected_rows, dead_rows)
        group.remove(range_)
        group.last_ack_s = s.now
        s.counters.settled += 1

    def nack(self, peer: Consumer, h: Header, frames: list[bytes]) -> None:
        """The current holder gives a range back: released, failed (counted, backed off) or dead."""
        s = self.s
        topic, group = peer.topic, peer.group
        range_ = group.ranges.get(h.a)
        # After a restart the count of deliveries may lie behind the attempt that a member who kept the range knows of.
        if range_ is None or h.f != group.generation or range_.holder is not peer.member or h.e < range_.deliveries:
            return
        reason = frames[0].decode("utf-8", "replace") if frames else ""
        if h.flags & Flag.DEAD:
            self.burying.bury(topic, group, range_, None, reason)
        elif h.flags & Flag.FAILURE:
            range_.failures += 1
            s.counters.failures += 1
            self._count(topic, group, range_)
            config = group.config
            backoff_s = min(config.retry_backoff_max_s, config.retry_backoff_s * 2 ** (range_.failures - 1))
            self._return(topic, group, range_, s.now + backoff_s * (0.5 + s.rng.random() / 2))
        else:
            # Released: no counter moves (R23). A moment's pause, so that it does not bounce.
            group.make_ready(range_, s.now + group.config.seal_interval_ms / 1000, s.now)
            range_.maybe_repeat = True

    def working(self, peer: Consumer, h: Header) -> None:
        range_ = peer.group.ranges.get(h.a)
        if range_ is not None and range_.holder is peer.member:
            range_.waiting = h.g == WorkState.WAITING
            range_.taken_s = max(range_.taken_s, self.s.now) if range_.waiting else range_.taken_s

    # --- sealing and delivery --------------------------------------------------------------------------------------

    def pump(self, topic: Topic, group: Group) -> float:
        """Seal and deliver what can be; returns when this group wants to be looked at again."""
        s = self.s
        now = s.now
        group.wake_delayed(now)
        while group.ready and not group.paused:
            if group.config.mode == "ordered":
                if not self._deliver_ordered(topic, group):
                    break
                continue
            member = group.next_member()
            if member is None:
                break
            range_ = group.next_ready()
            if range_ is None:
                break
            self._deliver(topic, group, range_, member)
        deadline = group.delayed[0][0] if group.delayed else _FOREVER
        if group.paused or topic.stopped:
            return deadline
        return min(deadline, self._seal(topic, group))

    def _seal(self, topic: Topic, group: Group) -> float:
        """Cut ranges while members have credit for them (R24); returns when the next one is due."""
        s = self.s
        config = group.config
        deadline = _FOREVER
        n = len(topic.partitions)
        for step in range(n):
            index = (group.next_partition + step) % n
            part, gp = topic.partitions[index], group.parts[index]
            while True:
                end = part.next_offset if config.durable else part.durable_offset
                if gp.sealed_next >= end or gp.cutting:
                    gp.waiting_since_s = None
                    break
                if gp.waiting_since_s is None:
                    gp.waiting_since_s = s.now
                if group.free_credit <= 0 or (config.mode == "ordered" and gp.outstanding):
                    break
                rows = part.rows_total - gp.rows_before
                size = part.bytes_total - gp.bytes_before
                if rows < config.max_rows and size < config.max_bytes:
                    due = gp.waiting_since_s + config.linger_ms / 1000
                    if group.idle:
                        due = min(due, group.last_seal_s + config.seal_interval_ms / 1000)
                    if s.now < due:
                        deadline = min(deadline, due)
                        break
                if gp.sealed_next < part.base:
                    end = min(end, part.durable_offset)
                    gp.cutting = True
                    s.fx.cuts.append(
                        CutAsk(
                            topic.name, group.name, index, gp.sealed_next, end, config.max_rows, config.max_bytes, False
                        )
                    )
                    break
                cut = part.cut(gp.sealed_next, gp.rows_before, gp.bytes_before, config.max_rows, config.max_bytes)
                if cut is None:
                    break
                last = cut.last
                if last >= end:
                    break
                self._sealed(topic, group, index, last, cut.rows, cut.bytes)
                if topic.sticky == index and rows >= config.max_rows:
                    topic.sticky = (index + 1) % n
        group.next_partition = (group.next_partition + 1) % n
        return deadline

    def _sealed(self, topic: Topic, group: Group, index: int, last: int, rows: int, size: int) -> None:
        s = self.s
        gp = group.parts[index]
        range_ = topic.new_range(group.name, index, gp.sealed_next, last, rows, size)
        range_.maybe_repeat = gp.sealed_next < gp.repeat_below
        gp.sealed_next = last + 1
        gp.rows_before += rows
        gp.bytes_before += size
        gp.waiting_since_s = None
        group.last_seal_s = s.now
        group.add(range_)
        if group.config.durable:
            topic.journal(SEAL, group.name, range_.id, index, range_.first, last, rows, size)
            topic.commit.sealed.append(range_)
        else:
            group.make_ready(range_, s.now, s.now)

    def durable(self, topic: Topic, sealed: list[Range]) -> None:
        """The seals (and what they cover) are synced: the ranges may be delivered (R9)."""
        for range_ in sealed:
            group = topic.groups.get(range_.group)
            if group is not None and group.ranges.get(range_.id) is range_ and range_.state == SEALING:
                group.make_ready(range_, self.s.now, self.s.now)

    def cut_done(self, ask: CutAsk, last: int, rows: int, size: int) -> None:
        topic = self.s.topics.get(ask.topic)
        group = topic.groups.get(ask.group) if topic else None
        if topic is None or group is None:
            return
        gp = group.parts[ask.partition]
        gp.cutting = False
        if ask.measure:
            part = topic.partitions[ask.partition]
            # Since the question was asked only appends happened, and they stand in the totals on both sides.
            gp.rows_before = part.rows_total - self._behind(part, ask.end)[0] - rows
            gp.bytes_before = part.bytes_total - self._behind(part, ask.end)[1] - size
        elif gp.sealed_next == ask.first and last >= ask.first:
            self._sealed(topic, group, ask.partition, last, rows, size)

    @staticmethod
    def _behind(part: Any, offset: int) -> tuple[int, int]:
        """Rows and bytes from ``offset`` to the end, which lies in the tail."""
        i = offset - part.base
        if i <= 0:
            return 0, 0
        if not part.entries or i > len(part.entries):
            return 0, 0
        entry = part.entries[i - 1]
        return part.rows_total - entry[0], part.bytes_total - entry[1]

    def measure(self, topic: Topic, group: Group) -> None:
        """Running totals before a start in the middle of the log are asked from the log."""
        for part, gp in zip(topic.partitions, group.parts, strict=True):
            if part.first_offset < part.durable_offset and 0 < gp.sealed_next < part.durable_offset:
                gp.cutting = True
                self.s.fx.cuts.append(
                    CutAsk(
                        topic.name, group.name, part.index, gp.sealed_next, part.durable_offset, 1 << 62, 1 << 62, True
                    )
                )

    def _deliver_ordered(self, topic: Topic, group: Group) -> bool:
        """Ordered mode: partitions are shared out among members; a range goes to its partition's member."""
        members = sorted((m for m in group.members.values() if m.gone_s is None), key=lambda m: m.id)
        if not members:
            return False
        for _ in range(len(group.ready)):
            range_ = group.next_ready()
            if range_ is None:
                return False
            member = members[range_.partition % len(members)]
            if member.has_credit:
                self._deliver(topic, group, range_, member)
                return True
            group.ready.append(range_)
        return False

    def _deliver(self, topic: Topic, group: Group, range_: Range, member: Member) -> None:
        s = self.s
        group.hold(range_, member, s.now)
        member.delivered += 1
        range_.deliveries += 1
        if range_.deliveries > 1:
            range_.maybe_repeat = True
            group.redelivered += 1
            s.counters.redeliveries += 1
        tail = topic.partitions[range_.partition].slice(range_.first, range_.last)
        if tail is None:
            s.fx.reads.append(
                Read(
                    READ_TO_DELIVER,
                    topic.name,
                    group.name,
                    range_.id,
                    range_.partition,
                    range_.first,
                    range_.last,
                    range_.deliveries,
                )
            )
            return
        self._send(topic, group, range_, member, *tail)

    def _send(
        self, topic: Topic, group: Group, range_: Range, member: Member, records: bytes, payloads: bytes, count: int
    ) -> None:
        s = self.s
        s.counters.deliveries += 1
        s.counters.delivered_rows += range_.rows
        s.fx.sends.append(
            (
                member.conn,
                [
                    protocol.pack(
                        Type.DELIVER,
                        member.generation,
                        flags=Flag.MAYBE_REPEAT if range_.maybe_repeat else 0,
                        partition=range_.partition,
                        n=count,
                        a=range_.id,
                        b=range_.first,
                        c=range_.last,
                        d=(topic.epoch << 32) | group.generation,
                        e=range_.deliveries,
                        f=group.generation,
                    ),
                    records,
                    payloads,
                ],
            )
        )

    def read_done(self, read: Read, records: bytes, payloads: bytes) -> None:
        """What was read to deliver or to split has come."""
        s = self.s
        topic = s.topics.get(read.topic)
        group = topic.groups.get(read.group) if topic else None
        range_ = group.ranges.get(read.range_id) if group else None
        if topic is None or group is None or range_ is None:
            return
        if read.purpose == READ_TO_DELIVER:
            if range_.state == HELD and range_.deliveries == read.attempt and range_.holder is not None:
                self._send(
                    topic, group, range_, range_.holder, records, payloads, len(records) // protocol.RECORD.itemsize
                )
        elif read.purpose == READ_TO_SPLIT and range_.state == BURYING:
            self._split(topic, group, range_, records)

    def read_failed(self, read: Read) -> None:
        """The log could not be read just now: the range goes back in line, a moment later."""
        s = self.s
        topic = s.topics.get(read.topic)
        group = topic.groups.get(read.group) if topic else None
        range_ = group.ranges.get(read.range_id) if group else None
        if group is None or range_ is None:
            return
        if range_.state == BURYING or (range_.state == HELD and range_.deliveries == read.attempt):
            group.make_ready(range_, s.now + _READ_RETRY_S, s.now)

    def cut_failed(self, ask: CutAsk) -> None:
        topic = self.s.topics.get(ask.topic)
        group = topic.groups.get(ask.group) if topic else None
        if group is not None:
            group.parts[ask.partition].cutting = False

    def _ask_split(self, topic: Topic, group: Group, range_: Range) -> None:
        group.release(range_)
        range_.state = BURYING
        tail = topic.partitions[range_.partition].slice(range_.first, range_.last)
        if tail is not None:
            self._split(topic, group, range_, tail[0])
            return
        self.s.fx.reads.append(
            Read(READ_TO_SPLIT, topic.name, group.name, range_.id, range_.partition, range_.first, range_.last, 0)
        )

    def _split(self, topic: Topic, group: Group, range_: Range, records: bytes) -> None:
        """Into single batches with ids of their own, durably (R21): the one that kills is found, the rest goes on."""
        children: list[list[int]] = []
        offsets = [(r[0], r[4], r[6]) for r in protocol.RECORD_STRUCT.iter_unpack(records)]
        for offset, rows, size in offsets:
            children.append([topic.next_range_id, offset, offset, rows, size])
            topic.next_range_id += 1
        if not children:  # nothing but voids and gaps
            self.settled(topic, group, range_, 0, 0)
            return
        # Voids and gaps between records belong to the record before them, the leading ones to the first.
        children[0][1] = range_.first
        for child, after in pairwise(children):
            child[2] = after[1] - 1
        children[-1][2] = range_.last
        topic.journal(SPLIT_ENTRY, group.name, range_.id, children)
        topic.commit.sealed.extend(topic.split(group, range_, children))

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Leases, graces, heartbeats to consumers, expiry of groups: called about once a second."""
        s = self.s
        for conn, peer in [(c, p) for c, p in s.peers.items() if isinstance(p, Consumer)]:
            member, config = peer.member, peer.group.config
            lost = member.gone_s is not None and s.now - member.gone_s > s.config.reconnect_grace_s
            if lost or s.now - member.last_seen_s > config.ack_timeout_s:
                self._remove(peer, died=True)
                continue
            for range_ in list(member.holding.values()):
                if not range_.waiting and s.now - range_.taken_s > config.max_processing_s:
                    range_.deaths += 1
                    s.counters.deaths += 1
                    self._count(peer.topic, peer.group, range_)
                    self._return(peer.topic, peer.group, range_, s.now)
            s.send(conn, protocol.pack(Type.HEARTBEAT, member.generation))
        for topic in s.topics.values():
            for group in list(topic.groups.values()):
                if group.members or group.paused:
                    group.last_member_s = s.now
                elif s.now - group.last_member_s > group.config.group_expiry_s:
                    topic.groups.pop(group.name)
                    topic.journal(GROUP_GONE, group.name)

    def shift(self, pause_s: float) -> None:
        """The broker itself was paused: no peer was silent meanwhile (R23)."""
        for peer in self.s.peers.values():
            if isinstance(peer, Consumer):
                peer.member.last_seen_s += pause_s
                if peer.member.gone_s is not None:
                    peer.member.gone_s += pause_s
                for range_ in peer.member.holding.values():
                    range_.taken_s += pause_s
            else:
                peer.last_seen_s += pause_s


def _read_options(options: dict[str, Any]) -> tuple[str, GroupConfig, str]:
    """Group name, settings and start from a SUBSCRIBE; ValueError names what is wrong."""
    name = options.get("group", "")
    if not isinstance(name, str) or not protocol.valid_topic(name):
        raise ValueError(f"{name!r:.100} is no group name: letters, digits, . _ - and at most 200")
    start = options.get("start", "earliest")
    if start not in ("earliest", "latest"):
        raise ValueError(f"start must be earliest or latest, not {start!r:.40}")
    settings = {k: options[k] for k in GroupConfig.__dataclass_fields__ if k in options}
    config = GroupConfig.from_json(settings)
    if config.mode not in ("shared", "ordered"):
        raise ValueError(f"mode must be shared or ordered, not {config.mode!r:.40}")
    for field in (
        "max_rows",
        "max_bytes",
        "linger_ms",
        "ack_timeout_s",
        "max_processing_s",
        "max_attempts",
        "max_deaths",
    ):
        value = getattr(config, field)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < (0 if field == "linger_ms" else 1):
            raise ValueError(f"{field} must be a positive number, not {value!r:.40}")
    if not isinstance(config.durable, bool):
        raise ValueError("durable must be true or false")
    if not config.durable and "start" not in options:
        start = "latest"
    return name, config, start


__all__ = ["READY", "Consuming"]
