"""What is always true of the broker's core between two turns. Unit tests and the simulator ask after every step."""

from __future__ import annotations

import itertools

from zmqbroker.core.broker import Core
from zmqbroker.core.group import BURYING, DELAYED, HELD, READY, SEALING, Group
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer
from zmqbroker.core.topic import Topic


def check_invariants(core: Core) -> None:
    """Raises AssertionError with what is wrong."""
    _check_credit(core)
    for topic in core.topics.values():
        _check_topic(topic)
        for group in topic.groups.values():
            _check_group(core, topic, group)
    for conn, peer in core.state.peers.items():
        if isinstance(peer, Consumer):
            assert peer.member.conn == conn, "a consumer's member has another connection"
            assert peer.group.members.get(conn) is peer.member, "a consumer's member is not in its group"
            assert peer.topic.groups.get(peer.group.name) is peer.group, "a consumer's group is gone"
        else:
            assert peer.conn == conn, "a session has another connection"


def _check_credit(core: Core) -> None:
    pool = core.state.pool
    connected = [s for s in core.state.sessions.values() if s.conn is not None]
    for session in connected:
        assert core.state.peers.get(session.conn or b"") is session, f"session {session.id} is connected, and no peer"
        assert session.granted_bytes >= session.received_bytes >= session.freed_bytes >= 0, "credit runs backwards"
    outstanding = sum(s.granted_bytes - s.freed_bytes for s in connected)
    assert pool.outstanding_bytes == outstanding, f"credit leaked: {pool.outstanding_bytes} counted, {outstanding} held"
    assert pool.sessions == len(connected), f"{pool.sessions} sessions counted, {len(connected)} connected"
    sessions = [p for p in core.state.peers.values() if isinstance(p, Session)]
    assert len(sessions) == len(connected), "a producer is connected twice"


def _check_topic(topic: Topic) -> None:
    for part in topic.partitions:
        assert part.base + len(part.entries) == part.next_offset, "the tail does not end at the next offset"
        assert part.base <= part.durable_offset <= part.next_offset, "what is not durable has left the tail"
    ids = [c.id for c in topic.commits]
    assert ids == sorted(set(ids)), "commits out of order"


def _check_group(core: Core, topic: Topic, group: Group) -> None:
    where = f"group {group.name}"
    assert group.held == sum(r.holder is not None for r in group.ranges.values()), f"{where}: held miscounted"
    assert group.sealing == sum(r.state == SEALING for r in group.ranges.values()), f"{where}: sealing miscounted"
    waiting = {id(r) for r in group.ready}
    delayed = {range_id for _, range_id in group.delayed}
    for range_ in group.ranges.values():
        what = f"{where}, range {range_.id}"
        assert (range_.state == HELD) == (range_.holder is not None), (
            f"{what}: holder and state {range_.state} disagree"
        )
        assert group.parts[range_.partition].outstanding.get(range_.id) is range_, f"{what}: not outstanding"
        if range_.holder is not None:
            assert range_.holder.holding.get(range_.id) is range_, f"{what}: its holder does not know"
            assert group.members.get(range_.holder.conn) is range_.holder, f"{what}: held by nobody's member"
        if range_.state == READY:
            assert id(range_) in waiting, f"{what}: ready, but in no queue"
        if range_.state == DELAYED:
            assert range_.id in delayed, f"{what}: delayed, but nothing wakes it"
        if range_.state == SEALING:
            pending = [*topic.commits, topic.commit]
            assert any(r is range_ for c in pending for r in c.sealed), f"{what}: sealing, but in no commit"
        assert range_.state in (READY, DELAYED, SEALING, HELD, BURYING), f"{what}: state {range_.state}"
    for gp in group.parts:
        ranges = sorted(gp.outstanding.values(), key=lambda r: r.first)
        for a, b in itertools.pairwise(ranges):
            assert a.last < b.first, f"{where}: ranges {a.id} and {b.id} overlap"
        if ranges:
            assert ranges[-1].last < gp.sealed_next, f"{where}: a range beyond what is sealed"
        assert all(group.ranges.get(r.id) is r for r in ranges), f"{where}: outstanding, but not in the group"
    assert sorted(group.turn) == sorted(group.members), f"{where}: members and turns differ"
    for member in group.members.values():
        assert all(r.holder is member for r in member.holding.values()), f"{where}: a member holds what is not its own"
