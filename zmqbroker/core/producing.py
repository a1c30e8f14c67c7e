"""The producers' side: HELLO, PUBLISH, credit, and the acks that a durable commit allows (R4-R6)."""

from __future__ import annotations

from collections.abc import Callable

from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.core.credit import FIRST_GRANT_BYTES
from zmqbroker.core.session import Session
from zmqbroker.core.state import State
from zmqbroker.core.topic import FORGET, KIND_DATA, RESENT, Commit, Topic
from zmqbroker.protocol import MESSAGE_OVERHEAD_BYTES, NO_PARTITION, RECORD_STRUCT, Code, Flag, Header, Type

_record = RECORD_STRUCT.pack
_KEYED = int(Flag.KEYED)
_RESENT = int(Flag.RESENT)


class Producing:
    """Decides about producers' messages."""

    def __init__(self, state: State) -> None:
        self.s = state
        self.end_conversation: Callable[[bytes], None]
        """How the conversation on a connection is ended, whatever its kind (:meth:`Consuming.end`)."""

    def hello(self, conn: bytes, h: Header, frames: list[bytes]) -> None:
        """A producer begins a conversation for one session and one topic."""
        s = self.s
        if len(frames) < 1:
            s.error(conn, h.generation, Code.BAD_MESSAGE, "HELLO needs the topic as its second frame")
            return
        if not s.may_begin(conn, h.generation, h.a):
            return
        name = frames[0].decode("utf-8", "replace")
        options = protocol.unpack_options(frames[1]) if len(frames) > 1 else {}
        s.with_topic(
            conn, h.generation, name, lambda topic: self._welcome(topic, conn, h, str(options.get("name", "")))
        )

    def _welcome(self, topic: Topic, conn: bytes, h: Header, name: str) -> None:
        s = self.s
        peer = s.peers.get(conn)
        if isinstance(peer, Session) and peer.id == h.a and peer.generation == h.generation:
            self._say_welcome(topic, peer)  # asked twice, because the first answer took long
            return
        session = s.sessions.get(h.a)
        known = session is not None and session.topic == topic.name
        if session is None:
            session = s.sessions[h.a] = Session(h.a, topic.name)
            session.last_ms = s.steady_ms
        elif not known:
            s.error(
                conn,
                h.generation,
                Code.BAD_TOPIC,
                f"session {h.a} publishes into {session.topic}: use another session",
                h.a,
            )
            return
        if session.conn is not None and h.b < session.incarnation:
            s.error(conn, h.generation, Code.FENCED, "a newer run of this session is connected (R5)", h.a)
            return
        if session.conn is not None:
            # The same run on another connection is no other run: a HELLO of its last one may come late.
            if session.conn != conn and h.b > session.incarnation:
                s.error(
                    session.conn, session.generation, Code.FENCED, "another run of this session has connected (R5)", h.a
                )
            self.leave(session)
        self.end_conversation(conn)
        known = known and (session.contig > 0 or bool(session.above))
        session.incarnation = h.b
        session.conn = conn
        session.generation = h.generation
        session.name = name[:200]
        session.last_seen_s = session.since_s = s.now
        if h.c > session.floor:
            session.raise_floor(h.c)
        s.peers[conn] = session
        s.pool.join(session, self._may_have(session))
        s.pool.want(session, h.d)
        s.pool.share_out(self._may_have)
        s.pool.changed.pop(session.id, None)
        session.known = known
        self._say_welcome(topic, session)

    def _say_welcome(self, topic: Topic, session: Session) -> None:
        s = self.s
        conn, generation = session.conn or b"", session.generation
        s.send(
            conn,
            protocol.pack(
                Type.WELCOME,
                generation,
                flags=Flag.KNOWN if session.known else 0,
                a=session.id,
                b=session.granted_bytes,
                c=s.config.window_seqs,
                d=s.config.message_bytes_max,
            ),
            topic.uuid,
            protocol.pack_options(self._welcome_options(topic, session)),
        )
        if topic.stopped:
            s.error(conn, generation, Code.TOPIC_STOPPED, f"topic {topic.name} is stopped: {topic.stopped}", session.id)

    def _welcome_options(self, topic: Topic, session: Session) -> dict[str, object]:
        options: dict[str, object] = {
            "topic": topic.name,
            "partitions": len(topic.partitions),
            "heartbeat_s": self.s.config.heartbeat_s,
        }
        if topic.lost_at_start:
            # The disk has lost records that may have been delivered: what is sent again instead of them is doubtful.
            options["doubt_below"] = max(session.contig, max(session.above, default=0) + 1) + topic.lost_at_start
        return options

    def publish(self, session: Session, h: tuple, frames: list[bytes]) -> None:
        """One PUBLISH of a welcomed session in the right generation. The hot path."""
        s = self.s
        topic = s.topics[session.topic]
        payload = frames[0]
        size = len(payload) + MESSAGE_OVERHEAD_BYTES
        seq = h[8]
        if not s.pool.use(session, size):
            s.counters.over_credit += 1
            self._refuse(session, seq, Code.OVER_CREDIT, "above the credit granted")
            return
        session.last_seen_s = s.now
        if h[10] > session.granted_bytes:
            s.pool.want(session, h[10])
        if (
            topic.stopped
            or len(payload) > s.config.message_bytes_max
            or seq > h[9] + s.config.window_seqs
            or seq < h[9]
        ):
            s.pool.free(session, size)
            if topic.stopped:
                self._refuse(session, seq, Code.TOPIC_STOPPED, topic.stopped)
            elif len(payload) > s.config.message_bytes_max:
                self._refuse(session, seq, Code.TOO_LARGE, f"above {s.config.message_bytes_max} bytes")
            else:
                self._refuse(
                    session, seq, Code.BAD_MESSAGE, "the seq lies outside the window above the lowest unacked seq"
                )
            return
        commit = topic.commit
        ack = commit.acks.get(session.id)
        if ack is None:
            ack = commit.acks[session.id] = [session, session.generation, 0, []]
        ranges = ack[3]
        ack[2] += size
        if ranges and ranges[-1][1] + 1 == seq:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
        if seq < session.contig or seq in session.above:
            # Known: it rides to its ack with this commit, which ends after the one that holds the record.
            s.counters.duplicates += 1
            topic.duplicates += 1
            return
        wanted = h[4]
        if wanted != NO_PARTITION:
            if wanted >= len(topic.partitions):
                self._unack(ack, seq)
                self._refuse(
                    session, seq, Code.NO_PARTITION, f"topic {topic.name} has {len(topic.partitions)} partitions"
                )
                return
            part = topic.partitions[wanted]
        elif h[3] & _KEYED:
            part = topic.partitions[h[12] % len(topic.partitions)]
        else:
            part = topic.partitions[topic.sticky]
        if h[3] & _RESENT:
            part.resent.append(part.next_offset)
            part.resent_until_s = s.now + s.config.in_flight_max_s
            topic.journal(RESENT, part.index, part.next_offset)
        session.learn(seq, h[9])
        session.last_ms = s.steady_ms
        rows = h[6]
        topic.appends.append(
            (KIND_DATA, part.index, part.next_offset, session.id, seq, h[9], rows, s.wall_ms, h[11], payload)
        )
        part.append(rows, _record(part.next_offset, session.id, seq, h[9], rows, s.wall_ms, len(payload)), payload)
        topic.messages_total += 1
        topic.rate_rows += rows
        s.counters.messages += 1
        s.counters.rows += rows
        s.counters.bytes += len(payload)

    @staticmethod
    def _unack(ack: list, seq: int) -> None:
        """Take ``seq``, the last one noted, out of an ack again (its credit is freed all the same)."""
        last = ack[3][-1]
        if last[0] == last[1]:
            ack[3].pop()
        else:
            last[1] = seq - 1

    def _refuse(self, session: Session, seq: int, code: Code, reason: str) -> None:
        self.s.counters.refused += 1
        if session.conn is not None:
            self.s.send(
                session.conn,
                protocol.pack(Type.REFUSE, session.generation, a=session.id, b=seq, c=session.granted_bytes, e=code),
                reason.encode()[:1000],
            )

    def heartbeat(self, session: Session, h: Header) -> None:
        """A producer says that it lives and what it wants; it is always answered, with its credit."""
        s = self.s
        session.last_seen_s = s.now
        if h.d > session.granted_bytes:
            s.pool.want(session, h.d)
            s.pool.share_out(self._may_have)
        s.pool.changed[session.id] = session

    def bye(self, session: Session) -> None:
        if session.conn is not None:
            self.s.peers.pop(session.conn, None)
        self.leave(session)

    def leave(self, session: Session) -> None:
        """The conversation is over; the session stays known (R5)."""
        self.s.leave(session)

    def stopped(self, topic: Topic) -> None:
        """The topic's log has stopped: what its producers hold of the pool is of no use to them, but to others."""
        s = self.s
        for session in [p for p in s.peers.values() if isinstance(p, Session) and p.topic == topic.name]:
            s.error(
                session.conn or b"",
                session.generation,
                Code.TOPIC_STOPPED,
                f"topic {topic.name} is stopped: {topic.stopped}",
                session.id,
            )
            self.leave(session)
        self.share_out()

    def unverified(self, topic: Topic) -> list[tuple[Session, int]]:
        """(session, seq) of what the writer is about to refuse, because the payload does not match its checksum.

        They are in hands that are not written yet, which come before a snapshot that is taken now. It must not call
        them known: were the broker to die right after it, nothing would take its word back, and a batch that is in no
        log would count as taken.
        """
        found = []
        for commit in topic.commits:
            if not commit.written:
                for append in list(commit.data):  # the writer thread may take entries out of it
                    if append[0] == KIND_DATA and append[8] != crc32c(append[9]):
                        session = self.s.sessions.get(append[3])
                        if session is not None and session.knows(append[4]):
                            found.append((session, append[4]))
        return found

    def written(self, topic: Topic, commit: Commit, bad: list[int]) -> None:
        """The records of a commit are in the log, those in ``bad`` as voids: their seqs must be sent again."""
        s = self.s
        commit.written = True
        for i in bad:
            _, partition, offset, sid, seq, *_ = commit.data[i]
            topic.partitions[partition].void(offset)
            s.counters.bad_checksums += 1
            session = s.sessions.get(sid)
            if session is None:
                continue
            self._forget(topic, session, seq)
            topic.journal(FORGET, sid, seq)
            self._refuse(session, seq, Code.BAD_CHECKSUM, "the payload does not match its checksum: send it again")
        commit.data = []

    @staticmethod
    def _forget(topic: Topic, session: Session, seq: int) -> None:
        """``seq`` is in no log, though it was taken for known: nobody is to be told that it is safe."""
        session.forget(seq)
        for commit in (*topic.commits, topic.commit):
            ack = commit.acks.get(session.id)
            if ack is not None:
                ack[3] = [piece for r in ack[3] for piece in _without(r, seq)]

    def ack(self, commit: Commit) -> None:
        """Tell the producers of a commit that their seqs are safe, with fresh credit in the same message."""
        s = self.s
        pool = s.pool
        for session, generation, size, _ in commit.acks.values():
            if session.generation == generation and session.conn is not None:
                pool.free(session, size)
                if self._may_have(session):
                    pool.top_up(session)
        pool.share_out(self._may_have)
        for session, _, _, ranges in commit.acks.values():
            if session.conn is not None and ranges:
                pool.changed.pop(session.id, None)
                s.send(
                    session.conn,
                    protocol.pack(Type.ACK, session.generation, a=session.id, b=session.granted_bytes, n=len(ranges)),
                    protocol.pack_ranges(ranges),
                )
        commit.acks = {}

    def grant(self) -> None:
        """Tell those whose credit grew, or who asked, and were not told in an ACK."""
        s = self.s
        if s.pool.changed:
            for session in s.pool.changed.values():
                if session.conn is not None:
                    s.send(
                        session.conn,
                        protocol.pack(Type.HEARTBEAT, session.generation, a=session.id, b=session.granted_bytes),
                    )
            s.pool.changed.clear()

    def _take_back(self) -> None:
        """Some have work and get no credit. Who has had more than a little for a second and has sent nothing asked for
        what it did not need in the end. Credit can be taken back only by a new conversation."""
        s = self.s
        for session in [p for p in s.peers.values() if isinstance(p, Session)]:
            idle = session.received_bytes == session.received_mark and not session.hungry
            if idle and session.granted_bytes - session.received_bytes > FIRST_GRANT_BYTES:
                s.error(
                    session.conn or b"", session.generation, Code.NOT_WELCOME, "unused credit is taken back", session.id
                )
                self.leave(session)

    def share_out(self) -> None:
        """Serve who waits for credit (a topic has room again, or someone left)."""
        self.s.pool.share_out(self._may_have)

    def _may_have(self, session: Session) -> bool:
        topic = self.s.topics.get(session.topic)
        return topic is not None and not topic.disk_full and not topic.stopped and not topic.draining

    def expire(self) -> None:
        """Silent producers give their credit back; long unseen sessions are forgotten (R5)."""
        s = self.s
        silent_since = s.now - s.config.liveness_s
        if s.pool.starved:
            self._take_back()
        for peer in s.peers.values():
            if isinstance(peer, Session):
                peer.received_mark = peer.received_bytes
        for session in [p for p in s.peers.values() if isinstance(p, Session) and p.last_seen_s < silent_since]:
            self.leave(session)
        oldest_ms = s.steady_ms - int(s.config.producer_expiry_s * 1000)
        for session in [x for x in s.sessions.values() if x.conn is None and x.last_ms < oldest_ms]:
            del s.sessions[session.id]
        self.share_out()


def _without(r: list[int], seq: int) -> list[list[int]]:
    first, last = r
    if not first <= seq <= last:
        return [r]
    return [p for p in ([first, seq - 1], [seq + 1, last]) if p[0] <= p[1]]
