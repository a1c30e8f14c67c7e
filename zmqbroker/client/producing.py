"""The producer's decisions: what to send within the credit, what to send again, what is safe (R4-R7).

Pure: time comes in, frames go in and out. A batch stays pending until the broker acks that it is durable; a new
conversation sends every pending batch again under its own seq, and the broker takes each seq once.

After the broker's log changed its identity (another broker, a wiped or restored data directory), batches that were
sent before may lie in the old log: they go to that log alone (R7), unless ``failover="resend"`` allows to send them
to the new one, marked RESENT, so that collectors wait and check.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Final

from zmqbroker import protocol
from zmqbroker.client.conversation import SILENCE_S, Opening
from zmqbroker.client.runs import Limits, Run, Sealing, place_of
from zmqbroker.errors import BrokerError, MessageTooLarge, Refused
from zmqbroker.protocol import FATAL_FROM, HEADER, HEADER_BYTES, MAGIC, NO_PARTITION, VERSION, Code, Flag, Header, Type

_ASK_AHEAD_BYTES: Final = 1 << 20
"""How much credit is asked for beyond what was sent, at least; a larger batch asks for itself."""
_ASK_AHEAD_S: Final = 0.05
"""Who is served fast asks for as much as was acked in this time: the broker then has the next commit's batches while it
syncs the last. Among many who share the pool that is little, and turns stay short."""
_SEND_MESSAGES_MAX: Final = 256
_INLINE: Final = protocol.INLINE_BYTES_MAX + protocol.HEADER_BYTES
_HEARTBEAT_PENDING_S: Final = 1.0
_HEARTBEAT_IDLE_S: Final = 5.0
_BUSY_RETRY_S: Final = 1.0
_STOPPED_RETRY_S: Final = 5.0
_CHECKSUM_RETRY_S: Final = 0.05
_FAILED_MAX: Final = 10_000


class Pending:
    """A batch that is not acked yet."""

    __slots__ = ("count", "crc", "flags", "key", "log", "partition", "payload", "rows", "run")

    def __init__(self, payload: bytes, rows: int, crc: int, key: int | None, partition: int, count: int) -> None:
        self.payload = payload
        self.rows = rows
        self.crc = crc
        self.flags = 0 if key is None else int(Flag.KEYED)
        self.key = key or 0
        self.partition = partition
        self.count = count
        self.log: bytes | None = None
        """The log it was sent to; None if it was never sent."""
        self.run: Run | None = None
        """What it was sealed in for a collector without a broker (R30)."""

    @property
    def size_bytes(self) -> int:
        """What it takes of the credit."""
        return len(self.payload) + HEADER_BYTES


class ProducerConversation:
    """One session's conversation with one broker at a time."""

    def __init__(
        self,
        session: int,
        topic: str,
        *,
        incarnation: int,
        first_seq: int = 1,
        name: str = "",
        failover: str = "hold",
        resumed: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self.session = session
        self.topic = topic.encode()
        self.incarnation = incarnation
        self.name = name
        self.failover = failover
        self.resumed = resumed
        """An earlier run of this session may have sent batches that this one knows nothing of (R8)."""
        self.opening = Opening(rng or random.Random())
        self.next_seq = first_seq
        self.pending: dict[int, Pending] = {}
        self.pending_bytes = 0
        self.to_send: deque[int] = deque()
        self.unsent_bytes = 0
        self.granted_bytes = 0
        self.sent_bytes = 0
        self.message_bytes_max = 0
        self.window_seqs = 1 << 62
        self.log: bytes | None = None
        self.moved_after_s = 0.0
        """How long after a log was last heard its batches may go to the present one (R30)."""
        self._doubt_below = 0
        """The log has lost records: a batch sent to it before (by an earlier run of us: with a seq below this) may have
        been delivered all the same."""
        self.sealing = Sealing()
        self._sorted = True
        """Whether what another log may hold was sorted out of ``to_send`` in this conversation."""
        self._parted_s: dict[bytes, float] = {}
        self._held_back: deque[int] = deque()
        self._hold_until_s = 0.0
        self.fatal: BrokerError | None = None
        self.failed: dict[int, BrokerError] = {}
        """Batches that the broker will never take, by seq: the latest ones."""
        self.published = self.acked = self.rows_published = self.rows_acked = 0
        self.refused = self.given_up = self.possible_duplicates = self.stranded = 0
        self.on_acked: Callable[[int, int], None] | None = None
        """Called with (first seq, last seq) of what has become safe."""
        self._told_wanted = 0
        self._ahead_bytes = _ASK_AHEAD_BYTES
        self._paced_bytes = 0
        self._paced_from_s = 0.0
        self._echo = 0
        """The clock of a collector that asked whether we hear it (R30)."""
        self._last_sent_s = 0.0
        self._last_heard_s = 0.0
        self._heard_log_s = 0.0
        self._retry_at_s = 0.0
        self._closing = False
        self._bye_said = False

    # --- the application's side ------------------------------------------------------------------------------------

    def add(
        self, payload: bytes, rows: int, crc: int, key: int | None = None, partition: int = NO_PARTITION, count: int = 1
    ) -> int:
        """Take a batch; its seq is ``next_seq`` as it was."""
        seq = self.next_seq
        self.next_seq = seq + 1
        self.pending[seq] = batch = Pending(payload, rows, crc, key, partition, count)
        if self.resumed and seq < self._doubt_below:
            batch.flags |= Flag.RESENT
        self.to_send.append(seq)
        size = len(payload) + HEADER_BYTES
        self.pending_bytes += size
        self.unsent_bytes += size
        self.published += 1
        self.rows_published += rows
        return seq

    @property
    def lowest_unacked(self) -> int:
        return next(iter(self.pending), self.next_seq)

    @property
    def connected(self) -> bool:
        return self.opening.accepted

    def close(self) -> None:
        """Say BYE with the next outgoing messages."""
        self._closing = True

    # --- the link's side -------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        self._last_heard_s = now
        self._anew(0.0)

    def _anew(self, not_before_s: float) -> None:
        self.opening.reset(not_before_s)
        self.granted_bytes = self.sent_bytes = self._told_wanted = 0
        self.to_send = deque(self.pending)
        self.unsent_bytes = self.pending_bytes
        self._held_back.clear()
        self.sealing.unacked.clear()
        self._sorted = False

    @property
    def _wanted(self) -> int:
        """Total bytes that we would have sent with enough credit: the next batch, or a little more, ahead."""
        if not self.to_send:
            return self.sent_bytes
        first = self.pending.get(self.to_send[0])
        first_bytes = first.size_bytes if first is not None else 0
        if first is not None and first.run is not None:
            run = takewhile(lambda b: b is not None and b.run == first.run, map(self.pending.get, self.to_send))
            first_bytes = sum(b.size_bytes for b in run if b is not None)
        return self.sent_bytes + max(first_bytes, min(self.unsent_bytes, self._ahead_bytes))

    def outgoing(self, now: float) -> list[list[bytes]]:
        if self.fatal is not None:
            return []
        opening = self.opening
        generation = opening.generation
        if opening.should_say(now):
            opening.said(now)
            self._last_sent_s = now
            return [
                [
                    protocol.pack(
                        Type.HELLO,
                        generation,
                        flags=Flag.RESUMED if self.resumed else 0,
                        a=self.session,
                        b=self.incarnation,
                        c=self.lowest_unacked,
                        d=self._wanted,
                    ),
                    self.topic,
                    protocol.pack_options({"name": self.name}),
                ]
            ]
        if not opening.accepted:
            return []
        out: list[list[bytes]] = []
        if now >= self._retry_at_s:
            if self._held_back and now >= self._hold_until_s:
                held = [s for s in self._held_back if s in self.pending]
                self.unsent_bytes += sum(self.pending[s].size_bytes for s in held)
                self.to_send.extendleft(reversed(held))
                self._held_back.clear()
                self._sorted = False
            if not self._sorted:
                self._sort_out(now)
            self._publish(out, generation, now)
        if self._echo or (self.to_send and self._told_wanted <= self.granted_bytes < self._wanted):
            self._told_wanted = self._wanted
            out.append([protocol.pack(Type.HEARTBEAT, generation, a=self.session, c=self._echo, d=self._told_wanted)])
            self._echo = 0
        elif not out and now - self._last_sent_s >= (_HEARTBEAT_PENDING_S if self.pending else _HEARTBEAT_IDLE_S):
            out.append([protocol.pack(Type.HEARTBEAT, generation, a=self.session, d=self._wanted)])
        if self._closing and not self.to_send and not self._bye_said:
            self._bye_said = True
            out.append([protocol.pack(Type.BYE, generation, a=self.session)])
        if out:
            self._last_sent_s = now
        return out

    def _sort_out(self, now: float) -> None:
        """What another log may hold does not go to this one: never, later, or marked (R7, R30)."""
        self._sorted = True
        pending = self.pending
        if all(batch.log in (None, self.log) for batch in pending.values()):
            return
        kept: deque[int] = deque()
        for seq in self.to_send:
            batch = pending.get(seq)
            if batch is None:
                continue
            if batch.log not in (None, self.log):
                may_move_s = self._parted_s.get(batch.log or b"", 0.0) + self.moved_after_s
                if self.failover != "resend" and not self.moved_after_s:
                    # It waits for its own log to come back; what was never sent goes on.
                    self.stranded += 1
                    self.unsent_bytes -= batch.size_bytes
                    continue
                if now < may_move_s:
                    # An insert of it may still be on its way there: what was never sent goes first (R30).
                    self._held_back.append(seq)
                    self.unsent_bytes -= batch.size_bytes
                    self._hold_until_s = max(self._hold_until_s, may_move_s)
                    continue
                # For good: the new log may lose it before it is durable there, and be sent it again.
                batch.flags |= Flag.RESENT
                batch.log = self.log
            kept.append(seq)
        self.to_send = kept

    def _publish(self, out: list[list[bytes]], generation: int, now: float) -> None:
        to_send, pending = self.to_send, self.pending
        lowest = self.lowest_unacked
        publish = int(Type.PUBLISH)
        pack_header = HEADER.pack
        session, log, granted, sent = self.session, self.log, self.granted_bytes, self.sent_bytes
        window, limit = self.window_seqs, self.message_bytes_max
        if self.sealing.limits is not None:
            queue = ((seq, pending[seq]) for seq in to_send if seq in pending)
            granted = sent + self.sealing.sendable(queue, granted - sent, now)
        wanted = self._wanted
        while to_send and len(out) < _SEND_MESSAGES_MAX:
            seq = to_send[0]
            batch = pending.get(seq)
            if batch is None:
                to_send.popleft()
                continue
            payload = batch.payload
            size = len(payload) + HEADER_BYTES
            if sent + size > granted or seq - lowest >= window:
                break
            if len(payload) > limit:
                # A broker that was sent it would end the connection, each time again.
                to_send.popleft()
                self.unsent_bytes -= size
                self._give_up(seq, MessageTooLarge(len(payload), limit), now)
                if self.opening.generation != generation:
                    return
                continue
            batch.log = log
            to_send.popleft()
            sent += size
            header = pack_header(
                MAGIC, VERSION, publish, batch.flags, batch.partition, generation, batch.rows, session, seq, lowest,
                wanted if wanted > sent else sent, batch.crc, batch.key, batch.count,
                0 if batch.run is None else place_of(seq, batch.run),
            )  # fmt: skip
            # A payload of no bytes needs its frame: alone the header would be no whole PUBLISH.
            out.append([header + payload] if HEADER_BYTES < size <= _INLINE else [header, payload])
        self.unsent_bytes -= sent - self.sent_bytes
        self.sent_bytes = sent
        self._told_wanted = max(wanted, sent)
        if not to_send:
            self.unsent_bytes = 0  # what was acked before it was sent again in this conversation still stood in it

    def unsent(self, messages: list[list[bytes]], now: float) -> None:
        """No connection: begin anew when there is one. Batches are pending still."""
        self._anew(now)

    def receive(self, h: Header, frames: list[bytes], now: float) -> None:
        self._last_heard_s = now
        if h.type == Type.ERROR:
            self._error(h, frames, now)
            return
        if h.generation != self.opening.generation:
            return
        if self.opening.accepted:
            self._heard_log_s = now
        if h.type == Type.ACK:
            if h.b > self.granted_bytes:
                self.granted_bytes = h.b
            pending_bytes = self.pending_bytes
            self._acked(protocol.unpack_ranges(frames[0], h.n) if frames else [])
            self._pace(pending_bytes - self.pending_bytes, now)
        elif h.type == Type.HEARTBEAT:
            self.granted_bytes = max(self.granted_bytes, h.b)
            if h.c:
                self._echo = h.c
        elif h.type == Type.WELCOME:
            self._welcome(h, frames)
        elif h.type == Type.REFUSE:
            self._refuse(h, frames, now)
        elif h.type == Type.BYE:
            self._anew(now + _BUSY_RETRY_S)

    def _welcome(self, h: Header, frames: list[bytes]) -> None:
        if self.opening.accepted:
            return
        log = frames[0] if frames else b""
        if self.log is not None and log != self.log:
            moved = sum(1 for b in self.pending.values() if b.log is not None)
            if moved and self.failover == "resend":
                self.possible_duplicates += moved
        elif not h.flags & Flag.KNOWN:
            # This log does not know us, yet we sent it batches: it forgot (expiry), or never got them.
            self.possible_duplicates += sum(1 for b in self.pending.values() if b.log == log)
        if self.log is not None and log != self.log:
            self._parted_s[self.log] = self._heard_log_s
            if len(self._parted_s) > 100:
                del self._parted_s[next(iter(self._parted_s))]
        self.log = log
        options = protocol.unpack_options(frames[1]) if len(frames) > 1 else {}
        moved_after_s = options.get("moved_after_s", 0)
        self.moved_after_s = float(moved_after_s) if isinstance(moved_after_s, int | float) else 0.0
        doubt_below = options.get("doubt_below", 0)
        self._doubt_below = doubt_below if isinstance(doubt_below, int) else 0
        if self._doubt_below:
            for seq, batch in self.pending.items():
                if batch.log == log or (self.resumed and seq < self._doubt_below):
                    batch.flags |= Flag.RESENT
        self.sealing.limits = limits = Limits.of(options)
        if limits is not None:
            for run in {b.run for b in self.pending.values() if b.run is not None}:
                if sum(b.size_bytes for b in self._batches_of(run)) > limits.bytes:
                    self._dissolve(run)
        self.opening.accept()
        self.message_bytes_max = h.d
        self.window_seqs = h.c
        self.granted_bytes = h.b
        self.sent_bytes = 0

    def _acked(self, ranges: list[tuple[int, int]]) -> None:
        pending = self.pending
        for first, last in ranges:
            if last - first > len(pending) * 2 + 64:
                seqs = [s for s in pending if first <= s <= last]
            else:
                seqs = list(range(first, last + 1))
            for seq in seqs:
                batch = pending.pop(seq, None)
                if batch is not None:
                    self.acked += 1
                    self.rows_acked += batch.rows
                    self.pending_bytes -= len(batch.payload) + HEADER_BYTES
                    if batch.run is not None:
                        self.sealing.unacked.discard(batch.run)
                        if not first <= batch.run[0] <= batch.run[1] <= last:
                            self._dissolve(batch.run)
            if self.on_acked is not None:
                self.on_acked(first, last)

    def _pace(self, acked_bytes: int, now: float) -> None:
        """Learn from what is acked how much to ask for ahead."""
        self._paced_bytes += acked_bytes
        elapsed_s = now - self._paced_from_s
        if elapsed_s >= _ASK_AHEAD_S:
            self._ahead_bytes = max(_ASK_AHEAD_BYTES, int(self._paced_bytes * _ASK_AHEAD_S / elapsed_s))
            self._paced_bytes, self._paced_from_s = 0, now

    def _refuse(self, h: Header, frames: list[bytes], now: float) -> None:
        """One batch was not taken. It settles nothing: it is sent again, or given up where trying cannot help."""
        self.refused += 1
        self.granted_bytes = max(self.granted_bytes, h.c)
        seq, code = h.b, h.e
        batch = self.pending.get(seq)
        if batch is None:
            return
        reason = frames[0].decode("utf-8", "replace") if frames else ""
        if code >= FATAL_FROM:
            too_large = code == Code.TOO_LARGE
            self._give_up(
                seq,
                MessageTooLarge(len(batch.payload), self.message_bytes_max) if too_large else Refused(code, reason),
                now,
            )
            return
        self.to_send.appendleft(seq)
        self.unsent_bytes += len(batch.payload) + HEADER_BYTES
        if code == Code.TOPIC_STOPPED:
            self._retry_at_s = now + _STOPPED_RETRY_S
        elif code == Code.BAD_CHECKSUM:
            self._retry_at_s = now + _CHECKSUM_RETRY_S
        elif code == Code.OVER_CREDIT:
            self._anew(now)

    def _batches_of(self, run: Run) -> list[Pending]:
        found = (self.pending.get(seq) for seq in range(run[0], run[1] + 1))
        return [batch for batch in found if batch is not None and batch.run == run]

    def _dissolve(self, run: Run) -> None:
        """A run that cannot be sent whole any more is none: its batches are sealed anew, as what may be stored."""
        self.sealing.unacked.discard(run)
        for batch in self._batches_of(run):
            batch.run = None
            batch.flags |= Flag.RESENT

    def _give_up(self, seq: int, error: BrokerError, now: float) -> None:
        """This batch will never be taken: who waits for it learns why."""
        batch = self.pending.pop(seq)
        self.pending_bytes -= len(batch.payload) + HEADER_BYTES
        if batch.run is not None:
            self._dissolve(batch.run)
            self._anew(now)  # the collector forgets what it has of the run
        self.given_up += 1
        self.failed[seq] = error
        if len(self.failed) > _FAILED_MAX:
            del self.failed[next(iter(self.failed))]
        if self.on_acked is not None:
            self.on_acked(seq, seq)

    def _error(self, h: Header, frames: list[bytes], now: float) -> None:
        if h.generation not in (self.opening.generation, 0):
            return
        reason = frames[0].decode("utf-8", "replace") if frames else ""
        if h.e == Code.NOT_WELCOME:
            self._anew(now)
        elif h.e >= FATAL_FROM:
            self.fatal = Refused(h.e, reason)
        elif h.e == Code.TOPIC_STOPPED:
            self._retry_at_s = now + _STOPPED_RETRY_S
        else:
            self._anew(now + _BUSY_RETRY_S)

    def due_in(self, now: float) -> float:
        if self.fatal is not None:
            return 60.0
        if not self.opening.accepted:
            return self.opening.due_in(now)
        beat = _HEARTBEAT_PENDING_S if self.pending else _HEARTBEAT_IDLE_S
        due = [self._last_sent_s + beat - now]
        if self._retry_at_s > now:
            due.append(self._retry_at_s - now)
        if self._held_back:
            due.append(self._hold_until_s - now)
        if self.sealing.limits is not None:
            due.append(self.sealing.due_s - now)
        return max(0.0, min(due))

    def stale(self, now: float) -> bool:
        waiting = bool(self.pending) or not self.opening.accepted
        if waiting and now - self._last_heard_s > SILENCE_S:
            self._last_heard_s = now
            return True
        return False
