"""The core's one door: a batch of events in, one structure of effects out.

``Core.handle`` is called with everything the loop drained from its sockets and threads. It decides for all of it,
seals and delivers what has become possible, and closes one commit a topic: what it appended goes to the log in one
hand-over, and what waits for its durability (acks, deliveries, settlements) stands in that commit.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from zmqbroker.core import events as ev
from zmqbroker.core.burying import Burying
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.core.consuming import Consuming
from zmqbroker.core.delivering import Delivering
from zmqbroker.core.effects import CutAsk, Effects, Hand, Read
from zmqbroker.core.operating import Operating
from zmqbroker.core.partition import ENTRY_OVERHEAD_BYTES
from zmqbroker.core.producing import Producing
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer, State
from zmqbroker.core.topic import Commit, Topic
from zmqbroker.errors import ProtocolError
from zmqbroker.protocol import Code, Header, Type

if TYPE_CHECKING:
    from zmqbroker.storage.interface import Recovered

_PUBLISH = int(Type.PUBLISH)
_TICK_S = 1.0
_SHRINK_EVERY_BYTES = 1 << 20


class Core:
    """The broker without its sockets, files and clocks. ``handle`` is the only mutator."""

    def __init__(self, config: BrokerConfig, rng: random.Random, topic_config: TopicConfig | None = None) -> None:
        self.state = State(config, rng, topic_config or TopicConfig())
        self.burying = Burying(self.state)
        self.producing = Producing(self.state)
        self.delivering = Delivering(self.state, self.burying)
        self.burying.settled = self.delivering.settled
        self.consuming = Consuming(self.state, self.delivering)
        self.producing.end_conversation = self.consuming.end
        self.operating = Operating(self)
        self.deadline_s = 0.0
        """When ``handle`` wants to be called again at the latest, on the clock given to it."""
        self._next_tick_s = 0.0
        self._last_s: float | None = None
        self._steady_from_ms: int | None = None
        self._bytes_at_shrink = 0
        self._shrink_every_bytes = min(_SHRINK_EVERY_BYTES, config.tail_bytes // 4)

    @property
    def topics(self) -> dict[str, Topic]:
        return self.state.topics

    def handle(self, events: Iterable[tuple], now: float, wall_ms: int) -> Effects:
        """Decide about ``events``. ``now`` is monotonic seconds, ``wall_ms`` the time of day for records.

        The returned structure is reused: run it before the next call.
        """
        s = self.state
        s.fx.clear()
        if self._last_s is not None and now - self._last_s > s.config.pause_s:
            s.counters.pauses += 1
            self.consuming.shift(now - self._last_s)
        self._last_s = now
        s.now, s.wall_ms = now, wall_ms
        if self._steady_from_ms is None:
            self._steady_from_ms = wall_ms - int(now * 1000)
        s.steady_ms = self._steady_from_ms + int(now * 1000)
        for topic in s.topics.values():
            # A snapshot stands before this turn's entries: it must not know what any of them says.
            if topic.wants_roll and topic.roll_snapshot is None and not topic.appends:
                topic.wants_roll = False
                doubtful = self.producing.unverified(topic)
                for session, seq in doubtful:
                    session.forget(seq)
                topic.roll_snapshot = topic.snapshot(s.sessions_of(topic))
                for session, seq in doubtful:
                    session.learn(seq, 0)
        peers = s.peers
        publish = self.producing.publish
        for event in events:
            if event[0] == ev.MESSAGE:
                _, conn, h, frames = event
                peer = peers.get(conn)
                if h[2] == _PUBLISH and peer.__class__ is Session and h[5] == peer.generation and len(frames) == 1:
                    publish(peer, h, frames)
                else:
                    try:
                        self._message(conn, Header._make(h), frames)
                    except ProtocolError as e:
                        s.counters.garbage += 1
                        s.error(conn, h[5], e.code, e.reason)
            else:
                self._event(event)
        if now >= self._next_tick_s:
            self._tick()
        self.deadline_s = self._next_tick_s
        for topic in list(s.topics.values()):
            for group in list(topic.groups.values()):
                if group.members or not group.config.durable:
                    self.deadline_s = min(self.deadline_s, self.delivering.pump(topic, group))
        for topic in s.topics.values():
            self._close_commit(topic)
        self.producing.grant()
        taken = s.counters.bytes + s.counters.messages * ENTRY_OVERHEAD_BYTES + s.unmetered_bytes
        if taken - self._bytes_at_shrink > self._shrink_every_bytes:
            self._bytes_at_shrink = taken
            self._shrink_tails()
        return s.fx

    def _message(self, conn: bytes, h: Header, frames: list[bytes]) -> None:
        """Everything but a PUBLISH in good order."""
        s = self.s_peer(conn, h)
        kind = h.type
        if kind == Type.HELLO:
            self.producing.hello(conn, h, frames)
            return
        if kind == Type.SUBSCRIBE:
            self.consuming.subscribe(conn, h, frames)
            return
        if s is None:
            self.state.counters.stale += 1
            if kind not in (Type.BYE, Type.ERROR):
                self.state.error(conn, h.generation, Code.NOT_WELCOME, "say HELLO or SUBSCRIBE first")
            return
        if isinstance(s, Session):
            if kind == Type.HEARTBEAT:
                self.producing.heartbeat(s, h)
            elif kind == Type.BYE:
                self.producing.bye(s)
            else:
                raise ProtocolError(Code.BAD_MESSAGE, f"a producer may not send type {kind} with {len(frames)} frames")
            return
        s.member.last_seen_s = self.state.now
        s.member.gone_s = None
        if kind == Type.SETTLE:
            self.consuming.settle(s, h, frames)
        elif kind == Type.CREDIT:
            self.consuming.credit(s, h)
        elif kind == Type.WORKING:
            self.consuming.working(s, h)
        elif kind == Type.NACK:
            self.consuming.nack(s, h, frames)
        elif kind == Type.BYE:
            self.consuming.bye(s)
        elif kind == Type.HEARTBEAT:
            self.consuming.heartbeat(s, h)
        else:
            raise ProtocolError(Code.BAD_MESSAGE, f"a consumer may not send type {kind}")

    def s_peer(self, conn: bytes, h: Header) -> Session | Consumer | None:
        """The peer behind a connection, if the message belongs to its present conversation."""
        peer = self.state.peers.get(conn)
        if peer is None:
            return None
        generation = peer.generation if isinstance(peer, Session) else peer.member.generation
        return peer if generation == h.generation else None

    def _event(self, event: tuple) -> None:
        s = self.state
        kind = event[0]
        if kind == ev.COMMITTED:
            self._committed(*event[1:])
        elif kind == ev.READ:
            _, read, records, payloads, gaps = event
            if gaps:
                self._damaged(read.topic, gaps)
            if read.purpose == ev.BURY:
                self.burying.read_done(read, records, payloads)
            else:
                self.delivering.read_done(read, records, payloads)
        elif kind == ev.FAILED:
            self._failed(event[1])
        elif kind == ev.CUT:
            self.delivering.cut_done(*event[1:])
        elif kind == ev.GONE:
            self.consuming.gone(event[1])
        elif kind == ev.DISK:
            self._disk(*event[1:])
        elif kind == ev.OPENED:
            self._opened(*event[1:])
        elif kind == ev.OPEN_FAILED:
            s.opening.discard(event[1])
            s.waiting.pop(event[1], None)
            self.burying.topic_failed(event[1])
        elif kind == ev.LOG_STOPPED:
            topic = s.topics.get(event[1])
            if topic is not None:
                topic.stopped = event[2]
                self.producing.stopped(topic)

    def _damaged(self, name: str, gaps: Iterable[tuple[int, int, int, str]]) -> None:
        """A read met records that the disk has lost: a gap of its own says so from now on (R28)."""
        topic = self.state.topics.get(name)
        if topic is not None:
            for partition, first, last, reason in gaps:
                topic.lose(partition, first, last, reason)

    def _failed(self, what: Read | CutAsk) -> None:
        """The log could not be read: what waited for it goes back in line, a moment later."""
        if isinstance(what, CutAsk):
            self.delivering.cut_failed(what)
        elif what.purpose == ev.BURY:
            self.burying.read_failed(what)
        else:
            self.delivering.read_failed(what)

    def _opened(self, name: str, config: TopicConfig, uuid: bytes, recovered: Recovered | None) -> None:
        s = self.state
        topic = Topic(name, config, uuid)
        s.opening.discard(name)
        s.topics[name] = topic
        if recovered is not None:
            sessions = topic.recover(recovered, s.now)
            for session in sessions.values():
                session.last_ms = s.steady_ms - session.idle_ms
            s.sessions.update(sessions)
            grace_s = s.now + s.config.reconnect_grace_s
            for part in topic.partitions:
                part.resent_until_s = s.now + s.config.in_flight_max_s
            for group in topic.groups.values():
                if recovered.journal_damaged:
                    # Other bounds than those that are being worked on: all must have heard first (R14).
                    group.quiet_until_s = grace_s
                    self.delivering.measure(topic, group)
                for range_ in list(group.ranges.values()):
                    part = topic.partitions[range_.partition]
                    resent = any(range_.first <= o <= range_.last for o in part.resent)
                    group.make_ready(range_, part.resent_until_s if resent else grace_s, s.now)
        for then in s.waiting.pop(name, []):
            then()

    def _disk(self, name: str, used_bytes: int, first_offsets: list[int], full: bool, wants_roll: bool) -> None:
        topic = self.state.topics.get(name)
        if topic is None:
            return
        topic.disk_bytes = used_bytes
        # While a snapshot is on its way, what the log says is from before it came. A second one would make a segment
        # that holds nothing but the snapshot.
        if wants_roll and not any(commit.rolls and not commit.written for commit in topic.commits):
            topic.wants_roll = True
        for part, first in zip(topic.partitions, first_offsets, strict=True):
            if topic.config.overflow == "drop-oldest" and first > part.first_offset and topic.floors() is None:
                # Dropped before any group was there to miss it (drop-oldest): the topic counts it.
                topic.lost_messages += first - part.first_offset
            part.first_offset = max(part.first_offset, first)
            if topic.letters is not None and part.index == 0:
                topic.letters.done(0, part.first_offset - 1)
        # What producers may still send counts as used (R11), so that the cap holds whatever they do.
        cap = topic.config.disk_bytes_max
        was_full = topic.disk_full
        at_cap = used_bytes + self.state.pool.outstanding_bytes >= cap and topic.config.overflow == "stop"
        topic.disk_full = full or at_cap
        if was_full and not topic.disk_full:
            self.producing.share_out()

    def _committed(self, name: str, commit_id: int, bad: dict[int, list[int]], synced: bool) -> None:
        """Every hand up to ``commit_id`` is written, and durable where ``synced``."""
        s = self.state
        topic = s.topics.get(name)
        if topic is None:
            return
        merged = Commit(0)
        for commit in topic.commits:
            if commit.id > commit_id:
                break
            if not commit.written:
                self.producing.written(topic, commit, bad.get(commit.id, []))
                if topic.config.fsync != "commit":
                    _merge_acks(merged, commit)
        while synced and topic.commits and topic.commits[0].id <= commit_id:
            commit = topic.commits.popleft()
            _merge_acks(merged, commit)
            for part, end in zip(topic.partitions, commit.ends, strict=True):
                part.durable_offset = end
            self.delivering.durable(topic, commit.sealed)
            self._settle(commit)
        if merged.acks:
            self.producing.ack(merged)

    def _settle(self, commit: Commit) -> None:
        """The dead letters of a commit are durable: the ranges they came from are done."""
        for origin, group_name, range_id, rejected_rows, dead_rows in commit.settles:
            topic = self.state.topics.get(origin)
            group = topic.groups.get(group_name) if topic else None
            range_ = group.ranges.get(range_id) if group else None
            if topic is not None and group is not None and range_ is not None:
                self.delivering.settled(topic, group, range_, rejected_rows, dead_rows)

    def _close_commit(self, topic: Topic) -> None:
        """Hand over what this turn gathered for a topic's log."""
        commit = topic.commit
        if not topic.appends and commit.empty and topic.roll_snapshot is None:
            return
        if not topic.appends and topic.roll_snapshot is None and not topic.commits:
            # Only repeats of what is durable long since.
            topic.commit = Commit(commit.id)
            self.producing.ack(commit)
            self._settle(commit)
            return
        commit.ends = [p.next_offset for p in topic.partitions]
        commit.data = topic.appends
        commit.rolls = topic.roll_snapshot is not None
        self.state.fx.hands.append(Hand(topic.name, commit.id, topic.appends, topic.roll_snapshot))
        topic.commits.append(commit)
        topic.appends = []
        topic.roll_snapshot = None
        topic.next_commit += 1
        topic.commit = Commit(topic.next_commit)

    def _tick(self) -> None:
        s = self.state
        elapsed_s = _TICK_S + s.now - self._next_tick_s if self._next_tick_s else _TICK_S
        self._next_tick_s = s.now + _TICK_S
        self.consuming.tick()
        self.producing.expire()
        for topic in s.topics.values():
            topic.rows_per_s = topic.rate_rows / elapsed_s
            topic.rate_rows = 0

    def _shrink_tails(self) -> None:
        """Keep the tail cache within its budget, each partition in proportion to what it holds."""
        parts = [p for t in self.state.topics.values() for p in t.partitions if p.entries]
        held = [p.tail_bytes for p in parts]
        total = sum(held)
        budget = self.state.config.tail_bytes
        if total > budget:
            for part, size in zip(parts, held, strict=True):
                # A tenth below, so that this runs once in a while and not every time.
                part.shrink(int(size * budget / total * 0.9))


def _merge_acks(into: Commit, commit: Commit) -> None:
    """One ACK a session and turn, whatever the number of commits: ranges joined, credit of this generation summed."""
    for sid, ack in commit.acks.items():
        session, generation, size, ranges = ack
        have = into.acks.get(sid)
        if have is None:
            into.acks[sid] = ack
            continue
        if generation == have[1]:
            have[2] += size
        elif generation == session.generation:
            have[1], have[2] = generation, size
        for r in ranges:
            if have[3] and have[3][-1][1] + 1 == r[0]:
                have[3][-1][1] = r[1]
            else:
                have[3].append(r)
    commit.acks = {}
