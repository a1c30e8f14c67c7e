"""What an operator may change: groups, topics, peers, limits. Called by the loop between two batches of events.

Each method changes the state at once and journals what must survive; durability comes with the next commit. Nothing
here touches files: what needs the log (times, rows and bytes of old ranges) is asked by the caller before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.core.config import TopicConfig
from zmqbroker.core.group import Group, GroupPartition
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer
from zmqbroker.core.topic import GROUP, GROUP_GONE, KIND_DATA, PAUSED, REDRIVEN, Topic, totals_before
from zmqbroker.protocol import RECORD_STRUCT, Type

if TYPE_CHECKING:
    from zmqbroker.core.broker import Core

QUOTAS = ("topics_max", "connections_max", "message_bytes_max", "window_seqs", "topic_create", "reconnect_grace_s")


class Operating:
    """The operator's door beside :meth:`Core.handle`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.s = core.state

    # --- groups

    def pause(self, topic: Topic, group: Group, paused: bool) -> None:
        """A paused group gets nothing new; what its members hold they may still settle. It does not expire (R20)."""
        if paused and not group.paused:
            group.paused, group.paused_at_s = True, self.s.now
        elif not paused and group.paused:
            group.resume(self.s.now)
        if group.config.durable:
            topic.journal(PAUSED, group.name, paused)

    def delete_group(self, topic: Topic, group: Group) -> None:
        """The group and its position are gone; its members are told to go."""
        for member in list(group.members.values()):
            self._dismiss(topic, group, member.conn)
        topic.groups.pop(group.name, None)
        if group.config.durable:
            topic.journal(GROUP_GONE, group.name)

    def reset_group(self, topic: Topic, group: Group, positions: Sequence[int]) -> Group:
        """A new generation of the group at ``positions`` (an offset for each partition; R27).

        What was delivered before may be in the store, so it comes as ``maybe_repeat``.
        """
        parts = []
        for part, old, at in zip(topic.partitions, group.parts, positions, strict=True):
            # What was dropped before the group had it is stepped over later, and counted (R28).
            at = min(max(at, min(part.first_offset, old.floor)), part.next_offset)
            totals = totals_before(part, at) if at >= part.base else (0, 0)
            parts.append(GroupPartition(at, *totals, max(old.repeat_below, old.sealed_next)))
        fresh = Group(group.name, group.config, group.generation + 1, parts)
        fresh.paused, fresh.last_member_s = group.paused, self.s.now
        fresh.settled_rows, fresh.settled_messages = group.settled_rows, group.settled_messages
        fresh.rejected_rows, fresh.dead_rows = group.rejected_rows, group.dead_rows
        fresh.lost_messages = group.lost_messages
        if any(member.holding for member in group.members.values()):
            # Other bounds than those that are being worked on: all must have heard first (R14).
            fresh.quiet_until_s = self.s.now + self.s.config.reconnect_grace_s
        for member in list(group.members.values()):
            for range_ in list(member.holding.values()):
                self._core.consuming.revoke(group, range_, "the group was reset")
            fresh.enter(member)
            peer = self.s.peers.get(member.conn)
            if isinstance(peer, Consumer):
                peer.group = fresh
        topic.groups[group.name] = fresh
        self._core.delivering.measure(topic, fresh)
        self._keep(topic, fresh)
        return fresh

    def replay(self, topic: Topic, group: Group, ranges: Sequence[tuple[int, int, int, int, int]]) -> list[int]:
        """Deliver old ranges (partition, first, last, rows, bytes) once more to this group alone; their ids.

        The group's position stays. The ranges are doubtful (R13): what is in place stays, what is missing is repaired.
        """
        made = []
        for partition, first, last, rows, size in ranges:
            gp = group.parts[partition]
            if last >= gp.sealed_next or any(r.first <= last and first <= r.last for r in gp.outstanding.values()):
                continue  # it is being delivered, or will be, anyway
            range_ = topic.new_range(group.name, partition, first, last, rows, size)
            range_.maybe_repeat = range_.again = True
            group.add(range_)
            made.append(range_)
        topic.commit.sealed.extend(made)
        self._keep(topic, group)
        return [range_.id for range_ in made]

    def redrive(
        self, topic: Topic, group: Group, letter: int, partition: int, offset: int, rows: int, size: int
    ) -> int | None:
        """Deliver a dead letter of ``topic`` to its group alone, doubtful, under its old address; the range's id (R26).

        ``letter`` is its offset in the dead-letter topic, the rest is its origin. It stays there until it is stored.
        None where it is on its way already: redriven, or about to come once more because the group was reset.
        """
        gp = group.parts[partition]
        if offset >= gp.sealed_next or any(r.first <= offset <= r.last for r in gp.outstanding.values()):
            return None
        range_ = topic.redriven(group, topic.next_range_id, partition, offset, rows, size, letter)
        if group.config.durable:
            topic.journal(REDRIVEN, group.name, range_.id, partition, offset, rows, size, letter)
        topic.commit.sealed.append(range_)
        return range_.id

    def redrive_into(self, topic: Topic, letters: Topic, letter: int, rows: int, payload: bytes) -> None:
        """Append what is in a dead letter to another topic, once, however often it is asked (R26).

        The record's session is made of where it comes from: its producer's belongs to the topic it published into.
        """
        digest = hashlib.blake2b(letters.uuid + topic.name.encode(), digest_size=8).digest()
        session_id, seq = int.from_bytes(digest, "little"), letter + 1  # offsets begin at 0, seqs at 1
        session = self.s.sessions.get(session_id)
        if session is None:
            session = self.s.sessions[session_id] = Session(session_id, topic.name)
        if session.knows(seq):
            return
        session.learn(seq, 0)
        session.last_ms = self.s.wall_ms
        part = topic.partitions[topic.sticky]
        record = (part.next_offset, session_id, seq, 0, rows, self.s.wall_ms)
        topic.appends.append((KIND_DATA, part.index, *record, crc32c(payload), payload))
        part.append(rows, RECORD_STRUCT.pack(*record, len(payload)), payload)
        topic.messages_total += 1
        self.s.unmetered_bytes += len(payload)

    def _keep(self, topic: Topic, group: Group) -> None:
        if group.config.durable:
            topic.journal(GROUP, group.to_state())

    # --- peers

    def kick(self, conn: bytes) -> None:
        """End a conversation. The client may come back: to keep it away, take its key from the allow-list."""
        peer = self.s.peers.get(conn)
        if isinstance(peer, Consumer):
            self._dismiss(peer.topic, peer.group, conn)
        elif isinstance(peer, Session):
            self.s.send(conn, protocol.pack(Type.BYE, peer.generation, a=peer.id))
            self._core.producing.leave(peer)

    def _dismiss(self, topic: Topic, group: Group, conn: bytes) -> None:
        member = group.members.get(conn)
        if member is not None:
            self._core.consuming.dismiss(Consumer(topic, group, member))

    # --- topics

    def drain(self, topic: Topic, draining: bool) -> None:
        """A draining topic gives its producers no more credit; consumers go on."""
        topic.draining = draining
        if not draining:
            self._core.producing.share_out()

    def edit_topic(self, topic: Topic, config: TopicConfig) -> None:
        """Other settings from now on; the number of partitions and the kind of storage stay."""
        topic.config = replace(config, partitions=topic.config.partitions, storage=topic.config.storage)

    def purge(self, topic: Topic, before: Sequence[int]) -> int:
        """Every record below ``before`` (an offset for each partition) is no more, for every group; how many offsets.

        Its files go with the next drop of segments; the roll that this asks for lets the present one go too.
        """
        gone = 0
        for part, at in zip(topic.partitions, before, strict=True):
            at = min(at, part.durable_offset)
            if at > part.first_offset:
                gone += at - part.first_offset
                topic.lose(part.index, part.first_offset, at - 1, "purged by an operator")
                part.first_offset = at
        for group in topic.groups.values():
            moved = False
            for part, gp in zip(topic.partitions, group.parts, strict=True):
                for range_ in [r for r in gp.outstanding.values() if r.last < part.first_offset]:
                    group.remove(range_)
                    moved = True
                if gp.sealed_next < part.first_offset:
                    gp.sealed_next = part.first_offset
                    gp.rows_before, gp.bytes_before = (
                        totals_before(part, gp.sealed_next) if gp.sealed_next >= part.base else (0, 0)
                    )
                    moved = True
            if moved:
                self._core.delivering.measure(topic, group)
                self._keep(topic, group)
        if gone:
            topic.wants_roll = True
        return gone

    def lose(self, topic: Topic, partition: int, first: int, last: int, reason: str) -> None:
        """A few records are no more (dead letters that were dropped or sent again)."""
        topic.lose(partition, first, last, reason)

    def forget_topic(self, topic: Topic) -> None:
        """The topic is gone: its peers are told to go, its sessions are forgotten."""
        for group in list(topic.groups.values()):
            for conn in list(group.members):
                self._dismiss(topic, group, conn)
        for session in [x for x in self.s.sessions.values() if x.topic == topic.name]:
            if session.conn is not None:
                self.kick(session.conn)
            self.s.sessions.pop(session.id, None)
        self.s.topics.pop(topic.name, None)

    # --- limits

    def set_quota(self, name: str, value: Any) -> None:
        """Change one limit of the broker until its next start. Raises KeyError for one that cannot be changed."""
        if name == "ingress_pool_bytes":
            self.s.pool.pool_bytes = value
        elif name not in QUOTAS:
            raise KeyError(name)
        self.s.config = replace(self.s.config, **{name: value})
        self._core.producing.share_out()
