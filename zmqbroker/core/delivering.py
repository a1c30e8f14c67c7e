"""From the log to the consumers: sealing, delivery, what had to be read for it, the split of a poisoned range."""

from __future__ import annotations

from itertools import pairwise

from zmqbroker import protocol
from zmqbroker.core.burying import Burying
from zmqbroker.core.effects import CutAsk, Read
from zmqbroker.core.events import DELIVER as READ_TO_DELIVER
from zmqbroker.core.events import SPLIT as READ_TO_SPLIT
from zmqbroker.core.group import BURYING, HELD, READY, SEALING, Group, GroupPartition, Member, Range
from zmqbroker.core.partition import Partition
from zmqbroker.core.state import Consumer, State, dead_letter_topic, open_envelope
from zmqbroker.core.topic import DEAD_LETTERS, SEAL, SETTLED, SKIPPED, Topic, totals_before
from zmqbroker.core.topic import SPLIT as SPLIT_ENTRY
from zmqbroker.protocol import RECORD_STRUCT, Flag, Type

_FOREVER = 1e18
_READ_RETRY_S = 1.0
_WITHOUT_LIMIT = 1 << 62


class Delivering:
    """Decides what is sealed, who gets it, and when a range is done."""

    def __init__(self, state: State, burying: Burying) -> None:
        self.s = state
        self.burying = burying

    # --- sealing ---------------------------------------------------------------------------------------------------

    def pump(self, topic: Topic, group: Group) -> float:
        """Seal and deliver what can be; returns when this group wants to be looked at again."""
        if group.paused:
            return _FOREVER
        if self.s.now < group.quiet_until_s:
            return group.quiet_until_s
        group.wake_delayed(self.s.now)
        if group.ready:
            if group.config.mode == "ordered":
                self._deliver_in_order(topic, group)
            else:
                self._deliver_ready(topic, group)
        deadline = group.delayed[0][0] if group.delayed else _FOREVER
        if topic.stopped:
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
                if gp.sealed_next < part.first_offset:
                    self._skip(topic, group, part, gp)
                    continue
                if gp.waiting_since_s is None:
                    gp.waiting_since_s = s.now
                if group.free_credit <= 0 or (config.mode == "ordered" and gp.outstanding):
                    break
                in_tail = gp.sealed_next >= part.base
                if in_tail:
                    # What the disk lost or refused still stands in older totals: the tail knows better.
                    gp.rows_before, gp.bytes_before = totals_before(part, gp.sealed_next)
                rows = part.rows_total - gp.rows_before
                size = part.bytes_total - gp.bytes_before
                if rows < config.max_rows and size < config.max_bytes:
                    due = gp.waiting_since_s + config.linger_ms / 1000
                    if group.idle:
                        due = min(due, group.last_seal_s + config.seal_interval_ms / 1000)
                    if s.now < due:
                        deadline = min(deadline, due)
                        break
                if not in_tail:
                    end = min(end, part.durable_offset)
                    gp.cutting = True
                    s.fx.cuts.append(
                        CutAsk(
                            topic.name, group.name, index, gp.sealed_next, end, config.max_rows, config.max_bytes, False
                        )
                    )
                    break
                cut = part.cut(gp.sealed_next, gp.rows_before, gp.bytes_before, config.max_rows, config.max_bytes)
                if cut is None or cut.last >= end:
                    break
                self._sealed(topic, group, index, cut.last, cut.rows, cut.bytes)
                if topic.sticky == index and rows >= config.max_rows:
                    topic.sticky = (index + 1) % n
        group.next_partition = (group.next_partition + 1) % n
        return deadline

    def _sealed(self, topic: Topic, group: Group, index: int, last: int, rows: int, size: int) -> None:
        s = self.s
        part, gp = topic.partitions[index], group.parts[index]
        first = gp.sealed_next
        range_ = topic.new_range(group.name, index, first, last, rows, size)
        range_.maybe_repeat = first < gp.repeat_below
        if part.resent and any(first <= offset <= last for offset in part.resent):
            # Another log may have it too, and an insert from there may still be on its way (R7, R14).
            range_.maybe_repeat = True
            range_.not_before_s = part.resent_until_s
        gp.sealed_next = last + 1
        gp.rows_before += rows
        gp.bytes_before += size
        gp.waiting_since_s = None
        group.last_seal_s = s.now
        group.add(range_)
        if group.config.durable:
            topic.sealed_ever[index] = max(topic.sealed_ever[index], last + 1)
            topic.journal(SEAL, group.name, range_.id, index, first, last, rows, size)
            topic.commit.sealed.append(range_)
        else:
            group.make_ready(range_, range_.not_before_s, s.now)

    def durable(self, topic: Topic, sealed: list[Range]) -> None:
        """The seals (and what they cover) are synced: the ranges may be delivered (R9)."""
        for range_ in sealed:
            group = topic.groups.get(range_.group)
            if group is not None and group.ranges.get(range_.id) is range_ and range_.state == SEALING:
                group.make_ready(range_, range_.not_before_s, self.s.now)

    def _skip(self, topic: Topic, group: Group, part: Partition, gp: GroupPartition) -> None:
        """What the group would seal next is no more: dropped at the disk cap, or not held back for it (R28)."""
        first = gp.sealed_next
        lost = topic.skip(group, part.index, part.first_offset)
        if group.config.durable:
            topic.journal(SKIPPED, group.name, part.index, part.first_offset)
            self.s.fx.notices.append(
                (
                    "records were dropped before a group took them",
                    {"topic": topic.name, "group": group.name, "partition": part.index, "messages": lost},
                )
            )
        self.tell_gap(group, part.index, first, part.first_offset - 1, "dropped before it was taken")
        self._measure(topic, group, part, gp)

    def tell_gap(self, group: Group, partition: int, first: int, last: int, reason: str) -> None:
        """Members learn what they will never be given."""
        for member in group.members.values():
            self.s.send(
                member.conn,
                protocol.pack(Type.GAP, member.generation, partition=partition, b=first, c=last),
                reason.encode()[:1000],
            )

    # --- questions to the log --------------------------------------------------------------------------------------

    def measure(self, topic: Topic, group: Group) -> None:
        """Find the running totals before where the group stands, which only the log may know."""
        for part, gp in zip(topic.partitions, group.parts, strict=True):
            self._measure(topic, group, part, gp)

    def _measure(self, topic: Topic, group: Group, part: Partition, gp: GroupPartition) -> None:
        at = gp.sealed_next
        gp.rows_before, gp.bytes_before = totals_before(part, max(at, part.base))
        if at >= part.base:
            gp.cutting = False
            return
        gp.cutting = True
        self.s.fx.cuts.append(
            CutAsk(
                topic.name, group.name, part.index, at, part.base, _WITHOUT_LIMIT, _WITHOUT_LIMIT, True,
                gp.rows_before, gp.bytes_before,
            )
        )  # fmt: skip

    def cut_done(self, ask: CutAsk, last: int, rows: int, size: int) -> None:
        topic = self.s.topics.get(ask.topic)
        group = topic.groups.get(ask.group) if topic else None
        if topic is None or group is None:
            return
        gp = group.parts[ask.partition]
        if gp.sealed_next != ask.first:
            return  # the group was set elsewhere meanwhile, and has asked anew
        gp.cutting = False
        if ask.measure:
            gp.rows_before = ask.rows_before_end - rows
            gp.bytes_before = ask.bytes_before_end - size
        elif last >= ask.first:
            self._sealed(topic, group, ask.partition, last, rows, size)

    def cut_failed(self, ask: CutAsk) -> None:
        topic = self.s.topics.get(ask.topic)
        group = topic.groups.get(ask.group) if topic else None
        if group is not None and group.parts[ask.partition].sealed_next == ask.first:
            group.parts[ask.partition].cutting = False

    # --- delivery --------------------------------------------------------------------------------------------------

    def _deliver_ready(self, topic: Topic, group: Group) -> None:
        """Shared mode: any member with credit takes the next range."""
        while group.ready:
            member = group.next_member()
            if member is None:
                return
            range_ = group.next_ready()
            if range_ is None:
                return
            self._deliver(topic, group, range_, member)

    def _deliver_in_order(self, topic: Topic, group: Group) -> None:
        """Ordered mode: of each partition the oldest unacked range alone, to the partition's own member (R25)."""
        for index, gp in enumerate(group.parts):
            if not gp.outstanding:
                continue
            range_ = min(gp.outstanding.values(), key=lambda r: r.first)
            if range_.state != READY:
                continue
            member = group.owner(index)
            if member is not None and member.has_credit:
                group.ready.remove(range_)
                self._deliver(topic, group, range_, member)

    def _deliver(self, topic: Topic, group: Group, range_: Range, member: Member) -> None:
        s = self.s
        group.hold(range_, member, s.now)
        member.delivered += 1
        range_.deliveries += 1
        if range_.deliveries > 1:
            range_.maybe_repeat = True
            group.redelivered += 1
            s.counters.redeliveries += 1
        tail = topic.partitions[range_.partition].slice(range_.first, range_.last) if range_.letter is None else None
        if tail is None:
            s.fx.reads.append(self._question(READ_TO_DELIVER, topic, range_, member))
        else:
            self._send(topic, group, range_, member, *tail)

    @staticmethod
    def _question(purpose: int, topic: Topic, range_: Range, member: Member | None = None) -> Read:
        conn, generation = (member.conn, member.generation) if member is not None else (b"", 0)
        source, partition, first, last = topic.name, range_.partition, range_.first, range_.last
        if range_.letter is not None:
            source, partition, first, last = dead_letter_topic(topic.name), 0, range_.letter, range_.letter
        return Read(
            purpose, source, range_.group, range_.id, partition, first, last, range_.deliveries, conn, generation
        )

    def _send(
        self, topic: Topic, group: Group, range_: Range, member: Member, records: bytes, payloads: bytes, count: int
    ) -> None:
        s = self.s
        if not count:
            # Voids and gaps alone: there is nothing to give to anybody (R28).
            member.delivered -= 1
            range_.lost = self._lost(topic, range_)
            self.settled(topic, group, range_, 0, 0)
            return
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
                        d=(topic.epoch << 32) | group.generation if not range_.again else (1 << 63) | range_.id,
                        e=range_.deliveries,
                        f=group.generation,
                    ),
                    records,
                    payloads,
                ],
            )
        )

    @staticmethod
    def _lost(topic: Topic, range_: Range) -> int:
        """How much of a range without records was lost: a void was never accepted, its batch is sent again."""
        first, last = range_.first, range_.last
        if topic.partitions[range_.partition].first_offset > first or topic.config.overflow == "drop-oldest":
            return last - first + 1
        gaps = [(g[1], g[2]) for g in topic.gaps if g[0] == range_.partition]
        return sum(max(0, min(last, end) - max(first, begin) + 1) for begin, end in gaps)

    def read_done(self, read: Read, records: bytes, payloads: bytes) -> None:
        """What was read to deliver or to split has come."""
        topic, group, range_ = self._asker(read)
        wanted = (
            topic is not None
            and group is not None
            and range_ is not None
            and range_.state == HELD
            and range_.deliveries == read.attempt
            and range_.holder is not None
        )
        if read.purpose == READ_TO_DELIVER:
            if not wanted:
                self._return_credit(read)
                return
            assert topic is not None
            assert group is not None
            assert range_ is not None
            assert range_.holder is not None
            if range_.letter is not None:
                records, payloads = _unwrap(records, payloads)
            count = len(records) // protocol.RECORD.itemsize
            dropped = topic.partitions[range_.partition].first_offset > range_.first
            if count and (dropped or topic.config.overflow == "drop-oldest"):
                range_.lost = _first_offset(records) - range_.first  # its segment went while it waited
            if range_.holder.generation != read.generation:
                self._return_credit(read)  # it came back in a new conversation, and claims what it never got
            self._send(topic, group, range_, range_.holder, records, payloads, count)
        elif topic is not None and group is not None and range_ is not None and range_.state == BURYING:
            self._split(topic, group, range_, records)

    def read_failed(self, read: Read) -> None:
        """The log could not be read just now: the range goes back in line, a moment later."""
        if read.purpose == READ_TO_DELIVER:
            self._return_credit(read)
        _, group, range_ = self._asker(read)
        if group is None or range_ is None:
            return
        if range_.state == BURYING or (range_.state == HELD and range_.deliveries == read.attempt):
            group.make_ready(range_, self.s.now + _READ_RETRY_S, self.s.now)

    def _asker(self, read: Read) -> tuple[Topic | None, Group | None, Range | None]:
        """Who asked: the topic of the group, which is not the one that was read where a dead letter is redriven."""
        for name in (read.topic, read.topic.removesuffix(DEAD_LETTERS)):
            topic = self.s.topics.get(name)
            group = topic.groups.get(read.group) if topic else None
            range_ = group.ranges.get(read.range_id) if group else None
            if range_ is not None:
                return topic, group, range_
        return None, None, None

    def _return_credit(self, read: Read) -> None:
        """A delivery that was counted and never sent."""
        peer = self.s.peers.get(read.conn)
        if isinstance(peer, Consumer) and peer.member.generation == read.generation:
            peer.member.delivered -= 1

    # --- the split of a range that kills ---------------------------------------------------------------------------

    def give_up(self, topic: Topic, group: Group, range_: Range) -> None:
        """A range that killed or failed too often: into single batches, and a single one to the dead letters (R22)."""
        config = group.config
        if not config.durable:
            self.settled(topic, group, range_, 0, 0)
        elif range_.last > range_.first:
            group.release(range_)
            range_.state = BURYING
            tail = topic.partitions[range_.partition].slice(range_.first, range_.last)
            if tail is not None:
                self._split(topic, group, range_, tail[0])
            else:
                self.s.fx.reads.append(self._question(READ_TO_SPLIT, topic, range_))
        else:
            died = range_.deaths >= config.max_deaths
            times = range_.deaths if died else range_.failures
            reason = f"its consumers {'died' if died else 'failed'} {times} times"
            self.burying.bury(topic, group, range_, None, reason)

    def _split(self, topic: Topic, group: Group, range_: Range, records: bytes) -> None:
        """Into single batches with ids of their own, durably (R21): the one that kills is found, the rest goes on."""
        children: list[list[int]] = []
        for offset, _, _, _, rows, _, size in RECORD_STRUCT.iter_unpack(records):
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
        made = topic.split(group, range_, children)
        for child_range in made:
            # Other bounds: who held the whole must know that its lease is over before a part is given out (R14).
            child_range.not_before_s = self.s.now + self.s.config.reconnect_grace_s
        topic.commit.sealed.extend(made)

    # --- done ------------------------------------------------------------------------------------------------------

    def settled(self, topic: Topic, group: Group, range_: Range, rejected_rows: int, dead_rows: int) -> None:
        """The range is done."""
        s = self.s
        if group.config.durable:
            topic.journal(SETTLED, group.name, range_.id, rejected_rows, dead_rows, range_.lost)
        topic.count_settled(group, range_, rejected_rows, dead_rows, range_.lost)
        group.remove(range_)
        group.last_ack_s = s.now
        s.counters.settled += 1
        if range_.letter is not None and not dead_rows:
            self.burying.letter_done(topic, range_.letter)


def _first_offset(records: bytes) -> int:
    """Of packed records, of which there is one at least."""
    return int(RECORD_STRUCT.unpack_from(records)[0])


def _unwrap(records: bytes, payloads: bytes) -> tuple[bytes, bytes]:
    """The record that a dead letter is about, as it was; nothing where the letter is no more."""
    if not records:
        return b"", b""
    letter_record = next(RECORD_STRUCT.iter_unpack(records))
    origin, payload = open_envelope(payloads[: letter_record[6]])
    record = RECORD_STRUCT.pack(
        *(int(str(origin[k])) for k in ("offset", "session", "seq")),
        0,
        *(int(str(origin[k])) for k in ("rows", "appended_ms")),
        len(payload),
    )
    return record, bytes(payload)
