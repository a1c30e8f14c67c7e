"""The receiving half of the producer's protocol, without a broker: a collector that binds takes batches itself (R30).

Pure, as :mod:`.consuming`: time comes in, messages go in and out.

Theory. There is no log here: a batch is acked when the store has it. Each PUBLISH is one range, never merged with
another, and its address alone (session, seq) names it: the token and the query ids of its inserts are the same at
every collector, so two that meet the same batch find each other's inserts. What may have been sent before, here or
elsewhere, is doubtful (R13): a batch marked RESENT, one of a session that was resumed, any but the first attempt.

The lease is the producer's: a collector begins an insert only while it hears the producer, and the producer sends a
batch elsewhere only after it has heard nothing from here for longer than that, and than an insert can be on its way.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.client.consuming import Delivery
from zmqbroker.core.credit import CreditPool
from zmqbroker.core.session import Session
from zmqbroker.errors import ProtocolError
from zmqbroker.protocol import FATAL_FROM, MESSAGE_OVERHEAD_BYTES, RECORD, RECORD_STRUCT, Code, Flag, Header, Type

LEASE_S: Final = 3.0
"""A producer that was silent for longer may have gone elsewhere: nothing is begun for it."""
IN_FLIGHT_MAX_S: Final = 60.0
"""Z: how long an insert that was sent may still commit."""
_LIVENESS_S: Final = 15.0
_ASK_S: Final = 0.8
_EXPIRY_S: Final = 3600.0
_RETRY_S: Final = (0.5, 30.0)
_ATTEMPTS_MAX: Final = 5


class DeadLetter(NamedTuple):
    """A batch that can be neither decoded nor stored."""

    session: int
    seq: int
    rows: int
    reason: str
    payload: bytes


class Batch:
    """A batch that a producer waits for."""

    __slots__ = (
        "attempt",
        "doubtful",
        "failures",
        "id",
        "lowest",
        "not_before_s",
        "payload",
        "rows",
        "seq",
        "session",
        "taken",
        "time_ms",
    )

    def __init__(self, id: int, session: Session, h: Header, payload: bytes, time_ms: int, doubtful: bool) -> None:
        self.id = id
        self.session = session
        self.seq = h.b
        self.lowest = h.c
        self.rows = h.n
        self.payload = payload
        self.time_ms = time_ms
        self.doubtful = doubtful
        self.attempt = self.failures = 0
        self.not_before_s = 0.0
        self.taken = False

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + MESSAGE_OVERHEAD_BYTES


class Accepting:
    """Grants credit to producers, hands out what they send, and acks what is stored."""

    def __init__(
        self, topic: str, uuid: bytes, *, pool_bytes: int = 64 << 20, message_bytes_max: int = 8 << 20,
        window_seqs: int = 1 << 16,
    ) -> None:  # fmt: skip
        self.topic = topic
        self.uuid = uuid
        """Of this process: a producer that meets another one knows that its batches may be elsewhere."""
        self.message_bytes_max = message_bytes_max
        self.window_seqs = window_seqs
        self.pool = CreditPool(pool_bytes, 1 << 18)
        self.sessions: dict[int, Session] = {}
        self.peers: dict[bytes, Session] = {}
        self.open = True
        """Whether anybody gets credit now."""
        self.sends: list[tuple[bytes, list[bytes]]] = []
        """(connection, frames) to be sent; the caller empties it."""
        self.batches: dict[int, Batch] = {}
        self.garbage = self.duplicates = self.acked = 0
        self._resumed: set[int] = set()
        self._waiting: dict[tuple[int, int], Batch] = {}
        self._ready: deque[Batch] = deque()
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
                self._resumed.add(h.a)  # it began before we did
        if session.conn is not None and h.b < session.incarnation:
            self._send(conn, protocol.pack(Type.ERROR, h.generation, e=Code.FENCED, a=h.a), b"a newer run is connected")
            return
        again = session.conn == conn and session.generation == h.generation
        if not again:
            self._leave(session)
            if conn in self.peers:
                self._leave(self.peers[conn])
            if h.flags & Flag.RESUMED:
                self._resumed.add(h.a)
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
            protocol.pack_options({"topic": self.topic, "moved_after_s": LEASE_S + IN_FLIGHT_MAX_S + 2.0}),
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
        if session.knows(h.b):
            self.duplicates += 1
            self.pool.free(session, size)
            self._ack(session, h.b)
            return
        batch = self._waiting.get((session.id, h.b))
        if batch is not None:
            # It is at work already; its credit is that of the conversation in which it is acked.
            self.duplicates += 1
            return
        doubtful = bool(h.flags & Flag.RESENT) or session.id in self._resumed
        batch = Batch(self._next_id, session, h, payload, wall_ms, doubtful)
        self._next_id += 1
        self._waiting[session.id, h.b] = self.batches[batch.id] = batch
        self._ready.append(batch)

    # --- what the application does ---------------------------------------------------------------------------------

    def take(self, now: float) -> Delivery | None:
        """The next batch to be stored, as a range of its own."""
        for _ in range(len(self._ready)):
            batch = self._ready.popleft()
            if batch.id not in self.batches:
                continue
            if batch.session.conn is None:
                # Its producer is away: it will send it again, here or elsewhere.
                self._forget(batch)
                continue
            if batch.not_before_s > now:
                self._ready.append(batch)
                continue
            batch.attempt += 1
            batch.taken = True
            return self._delivery(batch)
        return None

    def _delivery(self, batch: Batch) -> Delivery:
        h = protocol.unpack(
            protocol.pack(
                Type.DELIVER,
                0,
                flags=Flag.MAYBE_REPEAT if batch.doubtful or batch.attempt > 1 else 0,
                partition=0,
                n=1,
                a=batch.id,
                b=batch.seq,
                c=batch.seq,
                e=batch.attempt,
            )
        )
        record = RECORD_STRUCT.pack(
            batch.seq, batch.session.id, batch.seq, batch.lowest, batch.rows, batch.time_ms, len(batch.payload)
        )
        records = np.frombuffer(record, dtype=RECORD)
        return Delivery(self.topic, name_of(batch.session.id), h, records, memoryview(batch.payload))

    def holds(self, delivery: Delivery, now: float) -> bool:
        """Whether an insert of this batch may be begun: its producer has answered what we asked not long ago.

        That something of it was heard proves nothing: it may have waited in the socket while this process stood still.
        """
        batch = self.batches.get(delivery.range_id)
        return (
            batch is not None
            and batch.attempt == delivery.attempt
            and batch.session.conn is not None
            and now - self._heard_s.get(batch.session.id, -LEASE_S) < LEASE_S
        )

    def settle(self, delivery: Delivery) -> None:
        """The batch is stored (or is a dead letter): its producer may forget it."""
        batch = self.batches.get(delivery.range_id)
        if batch is None:
            return
        session = batch.session
        del self.batches[batch.id], self._waiting[session.id, batch.seq]
        session.learn(batch.seq, batch.lowest)
        self.acked += 1
        if session.conn is not None:
            self.pool.free(session, batch.size_bytes)
            self._ack(session, batch.seq)

    def nack(self, delivery: Delivery, failure: bool, now: float) -> DeadLetter | None:
        """It could not be stored now. After five failures it is a dead letter: keep it, then :meth:`settle`."""
        batch = self.batches.get(delivery.range_id)
        if batch is None or batch.attempt != delivery.attempt:
            return None
        batch.taken = False
        batch.failures += failure
        if batch.failures >= _ATTEMPTS_MAX:
            return self.dead_letter(delivery, "its inserts failed")
        batch.not_before_s = now + (min(_RETRY_S[1], _RETRY_S[0] * 2**batch.failures) if failure else 0.02)
        self._ready.append(batch)
        return None

    def dead_letter(self, delivery: Delivery, reason: str) -> DeadLetter | None:
        batch = self.batches.get(delivery.range_id)
        if batch is None:
            return None
        return DeadLetter(batch.session.id, batch.seq, batch.rows, reason, batch.payload)

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
            self._resumed.discard(session.id)
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
            for conn, session in self.peers.items():
                self._send(
                    conn,
                    protocol.pack(
                        Type.HEARTBEAT, session.generation, a=session.id, b=session.granted_bytes, c=int(now * 1000) + 1
                    ),
                )

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
        """Batches that are being stored."""
        return sum(b.taken for b in self.batches.values())

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
        for batch in [b for b in self.batches.values() if b.session is session and not b.taken]:
            self._forget(batch)

    def _forget(self, batch: Batch) -> None:
        if batch.attempt:
            # What was tried here may be stored: should it come again, it is not certain (R13).
            self._resumed.add(batch.session.id)
        self.batches.pop(batch.id, None)
        self._waiting.pop((batch.session.id, batch.seq), None)

    def _ack(self, session: Session, seq: int) -> None:
        if session.conn is not None:
            self.pool.changed.pop(session.id, None)
            if self.open:
                self.pool.top_up(session)
            self._send(
                session.conn,
                protocol.pack(Type.ACK, session.generation, a=session.id, b=session.granted_bytes, n=1),
                protocol.pack_ranges([(seq, seq)]),
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
