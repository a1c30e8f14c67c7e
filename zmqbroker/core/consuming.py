"""The consumers' side: SUBSCRIBE, leases, and what settles or returns a range (R20-R25)."""

from __future__ import annotations

import math
from typing import Any

from zmqbroker import protocol
from zmqbroker.core.config import GroupConfig
from zmqbroker.core.delivering import Delivering
from zmqbroker.core.group import BURYING, DELAYED, HELD, READY, Group, Member, Range
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer, State
from zmqbroker.core.topic import COUNTED, GROUP, GROUP_GONE, Topic, make_group
from zmqbroker.protocol import Code, Flag, Header, ProtocolError, Type, WorkState

_HOLDING_MAX = 10_000


class Consuming:
    """Decides about consumers' messages, and about consumers that say nothing."""

    def __init__(self, state: State, delivering: Delivering) -> None:
        self.s = state
        self.delivering = delivering

    # --- conversations ---------------------------------------------------------------------------------------------

    def subscribe(self, conn: bytes, h: Header, frames: list[bytes]) -> None:
        s = self.s
        if len(frames) < 2:
            s.error(conn, h.generation, Code.BAD_MESSAGE, "SUBSCRIBE needs the topic and its options")
            return
        if not s.may_begin(conn, h.generation, h.a):
            return
        options = protocol.unpack_options(frames[1])
        try:
            name, config, start = read_options(options)
        except ValueError as e:
            s.error(conn, h.generation, Code.BAD_MESSAGE, str(e), h.a)
            return
        topic_name = frames[0].decode("utf-8", "replace")
        s.with_topic(conn, h.generation, topic_name, lambda t: self._enter(t, conn, h, options, name, config, start))

    def _enter(
        self, topic: Topic, conn: bytes, h: Header, options: dict[str, Any], name: str, config: GroupConfig, start: str
    ) -> None:
        s = self.s
        peer = s.peers.get(conn)
        if isinstance(peer, Consumer) and peer.member.generation == h.generation and peer.member.id == h.a:
            # Asked twice, because the first answer took long: what was given since stands. Its credit may have grown.
            peer.member.credit = max(peer.member.credit, h.b)
            self._say_subscribed(peer, options)
            return
        group = topic.groups.get(name)
        if group is None:
            group = self._make_group(topic, name, config, start)
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
        if peer is not None and not (isinstance(peer, Consumer) and peer.member is member):
            self.end(conn)
            group = topic.groups.get(name) or self._make_group(topic, name, config, start)
        if member is None:
            member = Member(h.a, conn, h.generation, str(options.get("name", ""))[:200], s.now)
        member.conn, member.generation, member.gone_s = conn, h.generation, None
        member.credit, member.delivered = h.b, 0
        member.last_seen_s = member.since_s = s.now
        group.enter(member)
        consumer = s.peers[conn] = Consumer(topic, group, member)
        # What the member says that it still holds stays with it; what it does not know of is given out again.
        claims = _claims(options, topic)
        for range_ in list(member.holding.values()):
            if claims.get(range_.id) != range_.deliveries:
                self.give_back(topic, group, range_, s.now)
        for range_id, attempt in claims.items():
            found = group.ranges.get(range_id)
            if found is not None and found.state in (READY, DELAYED) and attempt >= found.deliveries:
                # After a restart of the broker only the member knows which attempt this is.
                found.deliveries = attempt
                group.hold(found, member, s.now)
        self._say_subscribed(consumer, options)

    def _make_group(self, topic: Topic, name: str, config: GroupConfig, start: str) -> Group:
        group = topic.groups[name] = make_group(topic, name, config, start)
        group.last_member_s = self.s.now
        if config.durable:
            topic.journal(GROUP, group.to_state())
        else:
            # Nothing of it outlives the broker: what was said of one of its name before must not meet it.
            group.generation = self.s.rng.randrange(1, 1 << 32)
        self.delivering.measure(topic, group)
        return group

    def _say_subscribed(self, peer: Consumer, options: dict[str, Any]) -> None:
        member, group, topic = peer.member, peer.group, peer.topic
        claims = _claims(options, topic)
        self.s.send(
            member.conn,
            protocol.pack(Type.SUBSCRIBED, member.generation, a=member.id),
            topic.uuid,
            protocol.pack_options(
                {
                    "group": group.name,
                    "generation": group.generation,
                    "heartbeat_s": self.s.config.heartbeat_s,
                    "ack_timeout_s": group.config.ack_timeout_s,
                    "holding": [[r.id, r.deliveries] for r in member.holding.values() if claims.get(r.id) is not None],
                }
            ),
        )

    def _detach(self, member: Member, group: Group) -> None:
        self.s.peers.pop(member.conn, None)
        group.leave(member)

    def end(self, conn: bytes) -> None:
        """Whatever conversation there was on this connection is over."""
        peer = self.s.peers.get(conn)
        if isinstance(peer, Consumer):
            self._remove(peer, died=False)
        elif isinstance(peer, Session):
            self.s.leave(peer)

    def credit(self, peer: Consumer, h: Header) -> None:
        peer.member.credit = h.b

    def heartbeat(self, peer: Consumer, h: Header) -> None:
        """A consumer asks whether it is heard: its lease counts from when it asked, so it is answered at once."""
        self.s.send(peer.member.conn, protocol.pack(Type.HEARTBEAT, peer.member.generation, c=h.c))

    def gone(self, conn: bytes) -> None:
        """The connection cannot be written to. A consumer has a moment to come back on another one."""
        peer = self.s.peers.get(conn)
        if isinstance(peer, Session):
            self.s.leave(peer)
        elif isinstance(peer, Consumer) and peer.member.gone_s is None:
            peer.member.gone_s = self.s.now

    def bye(self, peer: Consumer) -> None:
        """A consumer leaves in good order: its ranges go on at once, and nobody has died."""
        self._remove(peer, died=False)

    def dismiss(self, peer: Consumer) -> None:
        """End a consumer's conversation; it may begin another. Its ranges wait until it must have heard."""
        self.s.send(peer.member.conn, protocol.pack(Type.BYE, peer.member.generation))
        self._remove(peer, died=False, wait_s=self.s.config.reconnect_grace_s)

    def revoke(self, group: Group, range_: Range, reason: str) -> None:
        """Tell the holder of a range that it is its no more."""
        member = range_.holder
        if member is not None:
            self.s.send(
                member.conn,
                protocol.pack(Type.REVOKE, member.generation, a=range_.id, e=range_.deliveries, f=group.generation),
                reason.encode()[:1000],
            )
            group.release(range_)

    def _remove(self, peer: Consumer, died: bool, wait_s: float = 0.0) -> None:
        s = self.s
        member, group, topic = peer.member, peer.group, peer.topic
        self._detach(member, group)
        for range_ in list(member.holding.values()):
            if died:
                s.counters.deaths += 1
                range_.deaths += 1
                self._count(topic, group, range_)
            self.give_back(topic, group, range_, s.now + wait_s)
        if not group.members:
            group.last_member_s = s.now
            if not group.config.durable:
                topic.groups.pop(group.name, None)

    def _count(self, topic: Topic, group: Group, range_: Range) -> None:
        if group.config.durable:
            topic.journal(COUNTED, group.name, range_.id, range_.deliveries, range_.deaths, range_.failures)

    def give_back(self, topic: Topic, group: Group, range_: Range, not_before_s: float) -> None:
        """A range that somebody held goes back: to the queue, or into pieces if it has killed too often."""
        range_.maybe_repeat = True
        if range_.deaths >= group.config.max_deaths or range_.failures >= group.config.max_attempts:
            self.delivering.give_up(topic, group, range_)
        else:
            group.make_ready(range_, not_before_s, self.s.now)

    # --- what consumers say of their ranges ------------------------------------------------------------------------

    def settle(self, peer: Consumer, h: Header, frames: list[bytes]) -> None:
        """ACK of a range, from any attempt of this group generation (R21), perhaps with records to dead-letter."""
        topic, group = peer.topic, peer.group
        if h.f != group.generation:
            return
        dead: list[int] = []
        if h.n:
            if not frames:
                raise ProtocolError(Code.BAD_MESSAGE, "SETTLE names no offsets of its dead records")
            dead = protocol.unpack_offsets(frames[0], h.n)
        reason = frames[1].decode("utf-8", "replace") if len(frames) > 1 else ""
        range_ = group.ranges.get(h.a)
        if range_ is not None:
            self._settle(topic, group, range_, h.b, dead, reason)
            return
        for child in [r for r in group.ranges.values() if r.parent == h.a]:
            self._settle(topic, group, child, 0, dead, reason)

    def _settle(
        self, topic: Topic, group: Group, range_: Range, rejected_rows: int, dead: list[int], reason: str
    ) -> None:
        if range_.state == BURYING:
            return
        dead = [offset for offset in dead if range_.first <= offset <= range_.last]
        if dead and group.config.durable:
            self.delivering.burying.bury(topic, group, range_, dead, reason, rejected_rows=rejected_rows)
        else:
            self.delivering.settled(topic, group, range_, rejected_rows, 0)

    def nack(self, peer: Consumer, h: Header, frames: list[bytes]) -> None:
        """The current holder gives a range back: released, failed (counted, backed off) or dead."""
        s = self.s
        topic, group = peer.topic, peer.group
        range_ = self._held(peer, h)
        if range_ is None:
            return
        reason = frames[0].decode("utf-8", "replace") if frames else ""
        if h.flags & Flag.DEAD:
            if group.config.durable:
                self.delivering.burying.bury(topic, group, range_, None, reason)
            else:
                self.delivering.settled(topic, group, range_, 0, 0)
        elif h.flags & Flag.FAILURE:
            range_.failures += 1
            s.counters.failures += 1
            self._count(topic, group, range_)
            config = group.config
            backoff_s = min(config.retry_backoff_max_s, config.retry_backoff_s * 2 ** (range_.failures - 1))
            self.give_back(topic, group, range_, s.now + backoff_s * (0.5 + s.rng.random() / 2))
        else:
            # Released: no counter moves (R23). A moment's pause, so that it does not bounce.
            group.make_ready(range_, s.now + group.config.seal_interval_ms / 1000, s.now)
            range_.maybe_repeat = True

    def working(self, peer: Consumer, h: Header) -> None:
        range_ = self._held(peer, h)
        if range_ is not None:
            waiting = h.g == WorkState.WAITING
            if waiting or range_.waiting:
                range_.taken_s = self.s.now  # time spent waiting for the store does not count (R23)
            range_.waiting = waiting

    @staticmethod
    def _held(peer: Consumer, h: Header) -> Range | None:
        """The range that a NACK or WORKING is about, if it comes from the current attempt (R21)."""
        range_ = peer.group.ranges.get(h.a)
        if range_ is None or h.f != peer.group.generation or h.e != range_.deliveries:
            return None
        return range_ if range_.holder is peer.member else None

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Leases, graces, heartbeats to consumers, expiry of groups: called about once a second."""
        s = self.s
        for conn, peer in [(c, p) for c, p in s.peers.items() if isinstance(p, Consumer)]:
            member, config = peer.member, peer.group.config
            if member.gone_s is not None and s.now - member.gone_s > s.config.reconnect_grace_s:
                self._remove(peer, died=True)
                continue
            if s.now - member.last_seen_s > config.ack_timeout_s:
                # It may hear us still: it is told, and what it held waits until it must have heard.
                s.error(conn, member.generation, Code.NOT_WELCOME, f"silent for {config.ack_timeout_s:g} s", member.id)
                self._remove(peer, died=True, wait_s=s.config.reconnect_grace_s)
                continue
            if not peer.group.paused:
                self._end_long_work(peer)
            s.send(conn, protocol.pack(Type.HEARTBEAT, member.generation))
        for topic in s.topics.values():
            for group in list(topic.groups.values()):
                if group.members or group.paused:
                    group.last_member_s = s.now
                elif s.now - group.last_member_s > group.config.group_expiry_s:
                    self.expire(topic, group)

    def _end_long_work(self, peer: Consumer) -> None:
        """A range that is held for too long, however lively its consumer is, goes to another one (R23)."""
        s = self.s
        member, group = peer.member, peer.group
        limit_s = group.config.max_processing_s
        for range_ in [r for r in member.holding.values() if not r.waiting and s.now - r.taken_s > limit_s]:
            self.revoke(group, range_, f"held for {limit_s:g} s")
            range_.deaths += 1
            s.counters.deaths += 1
            self._count(peer.topic, group, range_)
            self.give_back(peer.topic, group, range_, s.now + s.config.reconnect_grace_s)

    def expire(self, topic: Topic, group: Group) -> None:
        """A durable group that nobody has used for long holds nothing back any more, and this is said loudly."""
        topic.groups.pop(group.name)
        topic.journal(GROUP_GONE, group.name)
        self.s.fx.notices.append(
            (
                "a group without members has expired: it holds no data back any more",
                {"topic": topic.name, "group": group.name, "after_s": group.config.group_expiry_s},
            )
        )

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


def _claims(options: dict[str, Any], topic: Topic) -> dict[int, int]:
    """What a SUBSCRIBE says is still held: range id -> attempt. Of another log it means nothing here."""
    holding = options.get("holding")
    if options.get("log") != topic.uuid.hex() or not isinstance(holding, list):
        return {}
    return {
        pair[0]: pair[1]
        for pair in holding[:_HOLDING_MAX]
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, int) for x in pair)
    }


_NUMBERS: dict[str, float] = {
    "max_rows": 1,
    "max_bytes": 1,
    "linger_ms": 0,
    "seal_interval_ms": 0,
    "ack_timeout_s": 5,
    "max_processing_s": 1,
    "max_attempts": 1,
    "max_deaths": 1,
    "retry_backoff_s": 0,
    "retry_backoff_max_s": 0,
    "group_expiry_s": 1,
}
"""Settings that a SUBSCRIBE may bring, and their least value. A lease must be longer than the silence after which a
collector thinks it over."""


def read_options(options: dict[str, Any]) -> tuple[str, GroupConfig, str]:
    """Group name, settings and start from a SUBSCRIBE; ValueError names what is wrong."""
    name = options.get("group", "")
    if not isinstance(name, str) or not protocol.valid_topic(name):
        raise ValueError(f"{name!r:.100} is no group name: letters, digits, . _ - and at most 200")
    start = options.get("start", "earliest")
    if start not in ("earliest", "latest"):
        raise ValueError(f"start must be earliest or latest, not {start!r:.40}")
    for field, least in _NUMBERS.items():
        value = options.get(field, least)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e15:
            raise ValueError(f"{field} must be a number of at least {least:g}, not {value!r:.40}")
        whole = isinstance(getattr(GroupConfig, field), int)
        if not math.isfinite(value) or (whole and value != int(value)):
            raise ValueError(f"{field} must be a whole number, not {value!r:.40}")
    settings = {k: options[k] for k in (*_NUMBERS, "mode", "durable") if k in options}
    config = GroupConfig.from_json(settings)
    if config.mode not in ("shared", "ordered"):
        raise ValueError(f"mode must be shared or ordered, not {config.mode!r:.40}")
    if not isinstance(config.durable, bool):
        raise ValueError("durable must be true or false")
    if not config.durable and "start" not in options:
        start = "latest"
    return name, config, start


__all__ = ["HELD", "Consuming", "read_options"]
