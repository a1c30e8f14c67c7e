"""The receiving half of the producer's protocol, without a broker: a collector that binds takes batches itself (R30).

Pure, as :mod:`.consuming`: time comes in, messages go in and out.

Theory. There is no log here: a batch is acked when the store has it. The producer seals runs of batches (:mod:`.runs`);
a run is one delivery, never merged with another, and its address alone (session, first and last seq) names it: the
token and the query ids of its inserts are the same at every collector, so two that meet the same run find each other's
inserts. What may have been sent before, here or elsewhere, is doubtful (R13): a run with a batch marked RESENT, one of
a session that was resumed, any but the first attempt.

The lease is the producer's: a collector begins an insert only while it hears the producer, and the producer sends a
run elsewhere only after it has heard nothing from here for longer than that, and than an insert can be on its way.
Where bounds may differ from those of an earlier time (another run of the producer, a run split in pieces), nothing is
begun before what has the old bounds can no longer begin (R14): not within the lease after the new process has come, and
not beside an overlapping run at work here.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.client import runs
from zmqbroker.client.consuming import Delivery
from zmqbroker.core.credit import FIRST_GRANT_BYTES, CreditPool
from zmqbroker.core.session import Session
from zmqbroker.errors import ProtocolError
from zmqbroker.protocol import FATAL_FROM, MESSAGE_OVERHEAD_BYTES, RECORD, RECORD_STRUCT, Code, Flag, Header, Type

LEASE_S: Final = 3.0
"""A producer that was silent for longer may have gone elsewhere: nothing is begun for it."""
IN_FLIGHT_MAX_S: Final = 60.0
"""Z: how long an insert that was sent may still commit."""
RUN: Final = runs.Limits(rows=250_000, bytes=4 << 20, linger_s=0.1, unacked=4)
_LIVENESS_S: Final = 15.0
_ASK_S: Final = 0.8
_EXPIRY_S: Final = 3600.0
_RETRY_S: Final = (0.5, 30.0)
_RELEASED_S: Final = 0.02
_ATTEMPTS_MAX: Final = 5


class Batch(NamedTuple):
    """One PUBLISH."""

    seq: int
    lowest: int
    rows: int
    payload: bytes
    time_ms: int


class Run:
    """Batches that a producer waits for, to be stored together; or one of them, after the whole failed too often."""

    __slots__ = (
        "attempt",
        "batches",
        "doubtful",
        "failures",
        "first",
        "id",
        "incarnation",
        "last",
        "not_before_s",
        "pieces",
        "session",
        "whole",
    )

    def __init__(self, id: int, session: Session, first: int, last: int) -> None:
        self.id = id
        self.session = session
        self.first = first
        self.last = last
        self.batches: dict[int, Batch] = {}
        self.incarnation = session.incarnation
        """Of the producer that waits for it: another process of the same session has other bounds."""
        self.doubtful = False
        self.attempt = self.failures = 0
        self.not_before_s = 0.0
        self.whole: Run | None = None
        """What this is a piece of."""
        self.pieces = 0
        """Into how many it was split that are not stored yet."""

    @property
    def is_complete(self) -> bool:
        return len(self.batches) == self.last - self.first + 1

    @property
    def credit_bytes(self) -> int:
        return sum(len(batch.payload) + MESSAGE_OVERHEAD_BYTES for batch in self.batches.values())

    def overlaps(self, other: Run) -> bool:
        return self.session is other.session and self.first <= other.last and other.first <= self.last


class Accepting:
    """Grants credit to producers, hands out what they send, and acks what is stored."""

    def __init__(
        self, topic: str, uuid: bytes, *, pool_bytes: int = 64 << 20, message_bytes_max: int = 8 << 20,
        window_seqs: int = 1 << 16, limits: runs.Limits = RUN,
    ) -> None:  # fmt: skip
        self.topic = topic
        self.uuid = uuid
        """Of this process: a producer that meets another one knows that its batches may be elsewhere."""
        self.message_bytes_max = message_bytes_max
        self.window_seqs = window_seqs
        # Room for a few runs at least, whoever sends them.
        self.limits = limits._replace(bytes=min(limits.bytes, pool_bytes // 8))
        self.pool = CreditPool(pool_bytes, 1 << 18)
        self.sessions: dict[int, Session] = {}
        self.peers: dict[bytes, Session] = {}
        self.open = True
        """Whether anybody gets credit now."""
        self.sends: list[tuple[bytes, list[bytes]]] = []
        """(connection, frames) to be sent; the caller empties it."""
        self.garbage = self.duplicates = self.acked = 0
        self._resumed: dict[int, float] = {}
        """Sessions of which something may be stored that we know nothing of: when their runs may begin."""
        self._runs: dict[tuple[int, int, int], Run] = {}
        """What was sent and is not acked, by session and bounds."""
        self._given: dict[int, Run] = {}
        """What can be given out, or is, by id."""
        self._at_work: dict[int, Run] = {}
        """What is given out."""
        self._ready: deque[Run] = deque()
        self._next_id = 1
        self._heard_s: dict[int, float] = {}
        """When each producer was asked the latest question that it has answered."""
        self._asked_s = 0.0

    # --- what producers say ----------------------------------------------------------------------------------------

    def receive(self, conn: bytes, frames: list[bytes], now: float, wall_ms: int) -> None:
        """One message of a peer. Never raises for what it holds."""
        try:
            h = protocol.unpack(frames[0][: protocol.HEADER_BYTES])
            body = [frames[0][protocol.HEADER_BYTES :]] if len(frames[0]) > protocol.HEADER_BYTES else frames[1:]
            self._message(conn, h, body, now, wall_ms)
        except (ProtocolError, IndexError) as e:
            self.garbage += 1
            code = e.code if isinstance(e, ProtocolError) else Code.BAD_MESSAGE
            self._send(conn, protocol.pack(Type.ERROR, 0, e=code), str(e).encode()[:1000])

    def _message(self, conn: bytes, h: Header, frames: list[bytes], now: float, wall_ms: int) -> None:
        if h.type == Type.HELLO:
            self._hello(conn, h, frames, now)
            return
        session = self.peers.get(conn)
        if session is None or session.generation != h.generation:
            if h.type not in (Type.BYE, Type.ERROR):
                self._send(conn, protocol.pack(Type.ERROR, h.generation, e=Code.NOT_WELCOME), b"say HELLO first")
            return
        session.last_seen_s = now
        if h.type == Type.PUBLISH and len(frames) == 1:
            self._publish(session, h, frames[0], wall_ms)
        elif h.type == Type.HEARTBEAT:
            self.pool.want(session, h.d)
            if h.c:
                self._heard_s[session.id] = max(self._heard_s.get(session.id, 0.0), (h.c - 1) / 1000)
            else:
                self.pool.changed[session.id] = session
        elif h.type == Type.BYE:
            self._leave(session)
        else:
            raise ProtocolError(Code.BAD_MESSAGE, f"a producer may not send type {h.type} with {len(frames)} frames")

    def _hello(self, conn: bytes, h: Header, frames: list[bytes], now: float) -> None:
        if not frames:
            raise ProtocolError(Code.BAD_MESSAGE, "HELLO needs the topic as its second frame")
        if frames[0] != self.topic.encode():
            reason = f"this collector takes topic {self.topic}"
            self._send(conn, protocol.pack(Type.ERROR, h.generation, e=Code.BAD_TOPIC, a=h.a), reason.encode())
            return
        session = self.sessions.get(h.a)
        known = session is not None
        if session is None:
            session = self.sessions[h.a] = Session(h.a, self.topic)
            if h.c > 1:
                self._resumed[h.a] = 0.0  # it began before we did
        if session.conn is not None and h.b < session.incarnation:
            self._send(conn, protocol.pack(Type.ERROR, h.generation, e=Code.FENCED, a=h.a), b"a newer run is connected")
            return
        again = session.conn == conn and session.generation == h.generation
        if not again:
            self._leave(session)
            if conn in self.peers:
                self._leave(self.peers[conn])
            if h.flags & Flag.RESUMED and h.b != session.incarnation:
                # Another process of the session may have sent its batches under other bounds, wherever (R14).
                self._resumed[h.a] = now + LEASE_S + 0.5
            session.incarnation, session.conn, session.generation = h.b, conn, h.generation
            session.raise_floor(max(h.c, session.floor))
            self.peers[conn] = session
            self.pool.join(session, self.open)
            self.pool.want(session, h.d)
            session.known = known
        session.last_seen_s = now
        self.pool.share_out(self._may_have)
        self.pool.changed.pop(session.id, None)
        self._asked_s = 0.0  # ask it at once
        self._send(
            conn,
            protocol.pack(
                Type.WELCOME,
                h.generation,
                flags=Flag.KNOWN if session.known else 0,
                a=session.id,
                b=session.granted_bytes,
                c=self.window_seqs,
                d=self.message_bytes_max,
            ),
            self.uuid,
            protocol.pack_options(
                {"topic": self.topic, "moved_after_s": LEASE_S + IN_FLIGHT_MAX_S + 2.0, **self.limits.to_options()}
            ),
        )

    def _publish(self, session: Session, h: Header, payload: bytes, wall_ms: int) -> None:
        size = len(payload) + MESSAGE_OVERHEAD_BYTES
        if not self.pool.use(session, size):
            self._refuse(session, h.b, Code.OVER_CREDIT, "above the credit granted")
            return
        self.pool.want(session, max(h.d, session.wanted_bytes))
        if len(payload) > self.message_bytes_max or not h.c <= h.b <= h.c + self.window_seqs:
            self.pool.free(session, size)
            self._refuse(session, h.b, Code.BAD_MESSAGE, "the seq lies outside the window, or the payload is too large")
            return
        if crc32c(payload) != h.e:
            self.pool.free(session, size)
            self._refuse(session, h.b, Code.BAD_CHECKSUM, "the payload does not match its checksum: send it again")
            return
        first, last = runs.run_at(h.b, h.h)
        if first < 0 or last - first >= runs.BATCHES_MAX:
            self.pool.free(session, size)
            self._refuse(session, h.b, Code.BAD_MESSAGE, "that is no place in a run")
            return
        run = self._runs.get((session.id, first, last))
        if run is None:
            run = self._runs[session.id, first, last] = self._new_run(session, first, last)
        elif h.b in run.batches:
            # It is at work already; its credit is that of the conversation in which it is acked.
            self.duplicates += 1
            run.incarnation = session.incarnation
            return
        # One that is known is taken all the same: its run may have others, and is acked as a whole.
        known = session.knows(h.b)
        self.duplicates += known
        run.doubtful |= known or bool(h.flags & Flag.RESENT) or session.id in self._resumed
        run.not_before_s = max(run.not_before_s, self._resumed.get(session.id, 0.0))
        run.batches[h.b] = Batch(h.b, h.c, h.n, payload, wall_ms)
        if run.is_complete:
            self._offer(run)

    def _new_run(self, session: Session, first: int, last: int) -> Run:
        self._next_id += 1
        return Run(self._next_id, session, first, last)

    def _offer(self, run: Run) -> None:
        self._given[run.id] = run
        self._ready.append(run)

    # --- what the application does ---------------------------------------------------------------------------------

    def take(self, now: float) -> Delivery | None:
        """The next run to be stored."""
        for _ in range(len(self._ready)):
            run = self._ready.popleft()
            if run.id not in self._given:
                continue
            if run.session.conn is None or run.session.incarnation != run.incarnation:
                # Its producer is away: it, or another process of it, will send this again, here or elsewhere.
                self._forget(run)
            elif run.not_before_s > now or any(other.overlaps(run) for other in self._at_work.values()):
                self._ready.append(run)
            elif all(run.session.knows(seq) for seq in run.batches):
                self._settle(run)  # stored under other bounds meanwhile
            else:
                run.attempt += 1
                self._at_work[run.id] = run
                return self._delivery(run)
        return None

    def _delivery(self, run: Run) -> Delivery:
        h = protocol.unpack(
            protocol.pack(
                Type.DELIVER,
                0,
                flags=Flag.MAYBE_REPEAT if run.doubtful or run.attempt > 1 else 0,
                partition=0,
                n=len(run.batches),
                a=run.id,
                b=run.first,
                c=run.last,
                e=run.attempt,
            )
        )
        batches = [batch for _, batch in sorted(run.batches.items())]
        session = run.session.id
        records = np.frombuffer(
            b"".join(
                RECORD_STRUCT.pack(b.seq, session, b.seq, b.lowest, b.rows, b.time_ms, len(b.payload)) for b in batches
            ),
            dtype=RECORD,
        )
        payloads = batches[0].payload if len(batches) == 1 else b"".join(b.payload for b in batches)
        return Delivery(self.topic, name_of(session), h, records, memoryview(payloads))

    def holds(self, delivery: Delivery, now: float) -> bool:
        """Whether an insert of this run may be begun: its producer has answered what we asked not long ago.

        That something of it was heard proves nothing: it may have waited in the socket while this process stood still.
        """
        run = self._given.get(delivery.range_id)
        return (
            run is not None
            and run.attempt == delivery.attempt
            and run.session.conn is not None
            and run.session.incarnation == run.incarnation
            and now - self._heard_s.get(run.session.id, -LEASE_S) < LEASE_S
        )

    def settle(self, delivery: Delivery) -> None:
        """The run is stored (or what is not is a dead letter): its producer may forget it."""
        run = self._given.get(delivery.range_id)
        if run is not None:
            self._settle(run)

    def _settle(self, run: Run) -> None:
        del self._given[run.id]
        self._at_work.pop(run.id, None)
        whole = run.whole
        if whole is not None:
            whole.pieces -= 1
            if whole.pieces:
                return
            run = whole
        session = run.session
        self._runs.pop((session.id, run.first, run.last), None)
        for seq, batch in sorted(run.batches.items()):
            session.learn(seq, batch.lowest)
        self.acked += len(run.batches)
        if session.conn is not None:
            self.pool.free(session, run.credit_bytes)
            self._ack(session, run.first, run.last)

    def nack(self, delivery: Delivery, failure: bool, now: float) -> bool:
        """It could not be stored now. After five failures a run is stored batch by batch, and of a single one this is
        True: it is a dead letter, to be kept and then settled."""
        run = self._given.get(delivery.range_id)
        if run is None or run.attempt != delivery.attempt:
            return False
        self._at_work.pop(run.id, None)
        run.failures += failure
        if not failure or run.failures < _ATTEMPTS_MAX:
            run.not_before_s = now + (min(_RETRY_S[1], _RETRY_S[0] * 2**run.failures) if failure else _RELEASED_S)
            self._ready.append(run)
            return False
        if len(run.batches) == 1:
            return True
        del self._given[run.id]
        run.pieces = len(run.batches)
        for seq, batch in run.batches.items():
            piece = self._new_run(run.session, seq, seq)
            piece.batches[seq] = batch
            piece.incarnation, piece.doubtful, piece.whole = run.incarnation, True, run
            self._offer(piece)
        return False

    def set_open(self, open_: bool) -> None:
        """Whether producers get credit: not while the store is away."""
        self.open = open_

    # --- time ------------------------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Grant what can be granted, forget who has gone. Call after messages and at least once a second."""
        for session in [s for s in self.peers.values() if now - s.last_seen_s > _LIVENESS_S]:
            self._leave(session)
        for session in [s for s in self.sessions.values() if s.conn is None and now - s.last_seen_s > _EXPIRY_S]:
            del self.sessions[session.id]
            self._resumed.pop(session.id, None)
        if self.open:
            for session in self.peers.values():
                self.pool.top_up(session)
        self.pool.share_out(self._may_have)
        for session in self.pool.changed.values():
            if session.conn is not None:
                self._send(
                    session.conn,
                    protocol.pack(Type.HEARTBEAT, session.generation, a=session.id, b=session.granted_bytes),
                )
        self.pool.changed.clear()
        if now - self._asked_s >= _ASK_S:
            self._asked_s = now
            if self.pool.starved:
                self._take_back()
            for session in self.peers.values():
                session.received_mark = session.received_bytes
            for conn, session in self.peers.items():
                self._send(
                    conn,
                    protocol.pack(
                        Type.HEARTBEAT, session.generation, a=session.id, b=session.granted_bytes, c=int(now * 1000) + 1
                    ),
                )

    def _take_back(self) -> None:
        """Some have work and get no credit: as a broker does, end the conversation of who has more than a little and
        has sent nothing lately. It begins another, with a little."""
        busy = {run.session.id for run in self._runs.values()}
        for conn, session in list(self.peers.items()):
            idle = session.received_bytes == session.received_mark and not session.hungry and session.id not in busy
            if idle and session.granted_bytes - session.received_bytes > FIRST_GRANT_BYTES:
                self._send(
                    conn,
                    protocol.pack(Type.ERROR, session.generation, e=Code.NOT_WELCOME, a=session.id),
                    b"unused credit is taken back",
                )
                self._leave(session)

    def gone(self, conn: bytes) -> None:
        """The connection cannot be written to any more."""
        session = self.peers.get(conn)
        if session is not None:
            self._leave(session)

    def bye(self) -> None:
        """We stop: producers may look for another collector."""
        for conn, session in self.peers.items():
            self._send(conn, protocol.pack(Type.BYE, session.generation))

    @property
    def taken(self) -> int:
        """Runs that are being stored."""
        return len(self._at_work)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _may_have(self, session: Session) -> bool:
        return self.open

    def _leave(self, session: Session) -> None:
        if session.conn is None:
            return
        self.peers.pop(session.conn, None)
        self._heard_s.pop(session.id, None)
        session.conn = None
        self.pool.leave(session)
        # What is not begun goes: its producer sends it again, and there is no lease to begin it under.
        for run in [r for r in (*self._given.values(), *self._runs.values()) if r.session is session]:
            if run.id not in self._at_work and not run.pieces:
                self._forget(run)

    def _forget(self, run: Run) -> None:
        if run.attempt or run.whole is not None:
            # What was tried here may be stored: should it come again, it is not certain (R13).
            self._resumed.setdefault(run.session.id, 0.0)
        self._given.pop(run.id, None)
        whole = run.whole or run
        self._runs.pop((whole.session.id, whole.first, whole.last), None)

    def _ack(self, session: Session, first: int, last: int) -> None:
        if session.conn is not None:
            self.pool.changed.pop(session.id, None)
            if self.open:
                self.pool.top_up(session)
            self._send(
                session.conn,
                protocol.pack(Type.ACK, session.generation, a=session.id, b=session.granted_bytes, n=1),
                protocol.pack_ranges([(first, last)]),
            )

    def _refuse(self, session: Session, seq: int, code: Code, reason: str) -> None:
        assert code < FATAL_FROM or code == Code.BAD_MESSAGE
        if session.conn is not None:
            self._send(
                session.conn,
                protocol.pack(Type.REFUSE, session.generation, a=session.id, b=seq, c=session.granted_bytes, e=code),
                reason.encode(),
            )

    def _send(self, conn: bytes, *frames: bytes) -> None:
        self.sends.append((conn, list(frames)))


def name_of(session: int) -> str:
    """What stands for the log's uuid in tokens and query ids: the same at every collector."""
    return hashlib.blake2b(b"direct" + session.to_bytes(8, "little"), digest_size=16).hexdigest()
