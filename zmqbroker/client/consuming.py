"""The consumer's decisions: credit, what is held, what to say of it (R6, R21-R23). Pure, as :mod:`.producing`."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from zmqbroker import protocol
from zmqbroker.client.conversation import SILENCE_S, Opening
from zmqbroker.errors import BrokerError, Refused
from zmqbroker.protocol import FATAL_FROM, RECORD, Code, Flag, Header, Type

_HEARTBEAT_S: Final = 1.0
_HEARTBEAT_IDLE_S: Final = 2.0
"""Of who holds nothing, and has no lease to keep: well within the silence that ends a conversation."""
_BUSY_RETRY_S: Final = 1.0


class Delivery:
    """A sealed range of one partition, to be settled as a whole.

    ``records`` has dtype :data:`zmqbroker.protocol.RECORD`; ``body`` holds the payloads one after the other.
    ``maybe_repeat``: rows of it may be in the store already (R13). ``seal_epoch`` and the bounds never change between
    attempts.
    """

    __slots__ = (
        "attempt",
        "body",
        "first",
        "group_generation",
        "last",
        "lease_over",
        "log_uuid",
        "maybe_repeat",
        "partition",
        "range_id",
        "records",
        "seal_epoch",
        "topic",
    )

    def __init__(self, topic: str, log_uuid: str, h: Header, records: np.ndarray, body: memoryview) -> None:
        self.topic = topic
        self.log_uuid = log_uuid
        self.range_id = h.a
        self.partition = h.partition
        self.first = h.b
        self.last = h.c
        self.seal_epoch = h.d
        self.attempt = h.e
        self.group_generation = h.f
        self.maybe_repeat = bool(h.flags & Flag.MAYBE_REPEAT)
        self.records = records
        self.body = body
        self.lease_over = False
        """The broker has said that the range is no longer ours: it may be somebody else's already."""

    @property
    def rows(self) -> int:
        return int(self.records["rows"].sum())

    def payloads(self) -> list[memoryview]:
        """One view a record, in offset order."""
        ends = np.cumsum(self.records["length"], dtype=np.int64).tolist()
        starts = [0, *ends]
        body = self.body
        return [body[a:b] for a, b in zip(starts, ends, strict=False)]

    def __repr__(self) -> str:
        again = " maybe repeated" if self.maybe_repeat else ""
        return f"<Delivery {self.topic}/{self.partition} {self.first}-{self.last} attempt {self.attempt}{again}>"


class ConsumerConversation:
    """One member's conversation with one broker."""

    def __init__(
        self,
        member: int,
        topic: str,
        group: str,
        *,
        credit: int = 2,
        name: str = "",
        options: dict[str, Any] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.member = member
        self.topic = topic
        self.options = {"group": group, "name": name, **(options or {})}
        self.opening = Opening(rng or random.Random())
        self.credit = credit
        self.holding: dict[int, Delivery] = {}
        """What was delivered and not settled, by range id."""
        self.ready: deque[Delivery] = deque()
        self.log_uuid = ""
        self.fatal: BrokerError | None = None
        self.deliveries = self.rows = self.settled = self.repeats = self.revoked = 0
        self.gaps: deque[tuple[int, int, int, str]] = deque(maxlen=1000)
        """What the broker said is no more: (partition, first offset, last offset, reason), the latest ones."""
        self.gaps_total = 0
        self.on_ready: Callable[[], None] | None = None
        self._received = 0
        self._told_credit = -1
        self._say: deque[list[bytes]] = deque()
        """(type, fields, frames) said by the application and not sent yet."""
        self._last_sent_s = 0.0
        self._last_heard_s = 0.0
        self._last_beat_s = 0.0
        self._subscribed_at_s = 0.0
        self.lease_from_s = 0.0
        """When we last said something that the broker is known to have heard since: its answer told. What was heard
        itself proves nothing of now: it may have waited in the socket while this process stood still (R12)."""
        self._closing = False
        self._bye_said = False

    @property
    def connected(self) -> bool:
        return self.opening.accepted

    @property
    def last_heard_s(self) -> float:
        """When the broker last said anything."""
        return self._last_heard_s

    def holds(self, delivery: Delivery) -> bool:
        """Whether the range is ours as far as the broker has told; how long ago it told anything is another matter."""
        return self.opening.accepted and not delivery.lease_over

    # --- the application's side ------------------------------------------------------------------------------------

    def settle(self, delivery: Delivery, rejected_rows: int, dead_offsets: list[int], reason: str) -> None:
        frames = []
        if dead_offsets:
            frames = [np.array(dead_offsets, dtype="<u8").tobytes(), reason.encode()[:1000]]
        self._tell(delivery, Type.SETTLE, frames, b=min(rejected_rows, (1 << 64) - 1), n=len(dead_offsets))
        self._let_go(delivery)
        self.settled += 1

    def nack(self, delivery: Delivery, reason: str, dead: bool, failure: bool) -> None:
        flags = (Flag.DEAD if dead else 0) | (Flag.FAILURE if failure else 0)
        if not delivery.lease_over:
            self._tell(delivery, Type.NACK, [reason.encode()[:1000]], flags=flags)
        self._let_go(delivery)

    def _let_go(self, delivery: Delivery) -> None:
        # By identity: a later attempt at the same range may be held too.
        if self.holding.get(delivery.range_id) is delivery:
            del self.holding[delivery.range_id]

    def working(self, delivery: Delivery, state: int) -> None:
        self._tell(delivery, Type.WORKING, [], g=state)

    def _tell(self, delivery: Delivery, type_: Type, frames: list[bytes], **fields: int) -> None:
        if delivery.log_uuid != self.log_uuid:
            return  # of another log: its ids mean other ranges here
        # The generation is put in when it is sent: what was decided in one conversation counts in the next (R21).
        header = protocol.pack(type_, 0, a=delivery.range_id, e=delivery.attempt, f=delivery.group_generation, **fields)
        self._say.append([header, *frames])

    def close(self) -> None:
        self._closing = True

    # --- the link's side -------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        self._last_heard_s = now
        self._anew(0.0)

    def _anew(self, not_before_s: float) -> None:
        self.opening.reset(not_before_s)
        self._subscribed_at_s = 0.0
        self._received = 0
        self._told_credit = -1

    @property
    def _credit_total(self) -> int:
        """Deliveries allowed in this generation: those received, and as many more as we have room for."""
        return self._received + max(0, self.credit - len(self.holding))

    def outgoing(self, now: float) -> list[list[bytes]]:
        if self.fatal is not None:
            return []
        opening = self.opening
        generation = opening.generation
        if opening.should_say(now):
            opening.said(now)
            self._last_sent_s = self._last_beat_s = now
            if not self._subscribed_at_s:
                self._subscribed_at_s = now
            self._told_credit = self._credit_total
            holding = [[d.range_id, d.attempt] for d in self.holding.values()]
            for message in self._say:
                h = protocol.unpack(message[0])
                if h.type in (Type.SETTLE, Type.NACK):
                    holding.append([h.a, h.e])
            options = {**self.options, "log": self.log_uuid, "holding": holding}
            return [
                [
                    protocol.pack(Type.SUBSCRIBE, generation, a=self.member, b=self._told_credit),
                    self.topic.encode(),
                    protocol.pack_options(options),
                ]
            ]
        if not opening.accepted:
            return []
        out: list[list[bytes]] = []
        while self._say:
            header, *frames = self._say.popleft()
            out.append([_in_generation(header, generation), *frames])
        if not self._closing and self._credit_total != self._told_credit:
            self._told_credit = self._credit_total
            out.append([protocol.pack(Type.CREDIT, generation, a=self.member, b=self._told_credit)])
        if now - self._last_beat_s >= self._heartbeat_s:
            self._last_beat_s = now
            out.append([protocol.pack(Type.HEARTBEAT, generation, c=_stamp(now))])
        if self._closing and not self._bye_said:
            self._bye_said = True
            out.append([protocol.pack(Type.BYE, generation)])
        if out:
            self._last_sent_s = now
        return out

    def unsent(self, messages: list[list[bytes]], now: float) -> None:
        for message in reversed(messages):
            if message[0][4] in (Type.SETTLE, Type.NACK):
                self._say.appendleft(message)
        self._anew(now)

    def receive(self, h: Header, frames: list[bytes], now: float) -> None:
        self._last_heard_s = now
        if h.type == Type.ERROR:
            self._error(h, frames, now)
        elif h.generation != self.opening.generation:
            return
        elif h.type == Type.DELIVER:
            self._received += 1
            if len(frames) != 2 or len(frames[0]) != h.n * RECORD.itemsize:
                self.fatal = Refused(Code.BAD_MESSAGE, "a DELIVER of the broker is malformed")
                return
            delivery = Delivery(
                self.topic, self.log_uuid, h, np.frombuffer(frames[0], dtype=RECORD), memoryview(frames[1])
            )
            self.deliveries += 1
            self.repeats += delivery.attempt > 1
            self.holding[delivery.range_id] = delivery
            self.ready.append(delivery)
            if self.on_ready is not None:
                self.on_ready()
        elif h.type == Type.SUBSCRIBED:
            self._subscribed(frames)
        elif h.type == Type.HEARTBEAT:
            if h.c:
                self.lease_from_s = max(self.lease_from_s, (h.c - 1) / 1000)
        elif h.type == Type.REVOKE:
            held = self.holding.get(h.a)
            if held is not None and held.attempt == h.e:
                self._revoked(held)
        elif h.type == Type.GAP:
            self.gaps_total += 1
            self.gaps.append((h.partition, h.b, h.c, frames[0].decode("utf-8", "replace") if frames else ""))
        elif h.type == Type.BYE:
            self._anew(now + _BUSY_RETRY_S)

    def _subscribed(self, frames: list[bytes]) -> None:
        """A new conversation begins: what the broker does not leave with us is somebody else's from now on."""
        if self.opening.accepted:
            return
        self.opening.accept()
        self.lease_from_s = self._subscribed_at_s
        log_uuid = frames[0].hex() if frames else ""
        if log_uuid != self.log_uuid:
            self._say.clear()
        self.log_uuid = log_uuid
        options = protocol.unpack_options(frames[1]) if len(frames) > 1 else {}
        ours = {(i, attempt) for i, attempt in options.get("holding", [])}
        for delivery in list(self.holding.values()):
            if (delivery.range_id, delivery.attempt) not in ours:
                self._revoked(delivery)

    def _revoked(self, delivery: Delivery) -> None:
        delivery.lease_over = True
        self.revoked += 1
        self._let_go(delivery)
        if delivery in self.ready:
            self.ready.remove(delivery)

    def _error(self, h: Header, frames: list[bytes], now: float) -> None:
        if h.generation not in (self.opening.generation, 0):
            return
        reason = frames[0].decode("utf-8", "replace") if frames else ""
        if h.e == Code.NOT_WELCOME:
            self._anew(now)
        elif h.e >= FATAL_FROM:
            self.fatal = Refused(h.e, reason)
        else:
            self._anew(now + _BUSY_RETRY_S)

    def due_in(self, now: float) -> float:
        if not self.opening.accepted:
            return self.opening.due_in(now)
        return max(0.0, self._last_beat_s + self._heartbeat_s - now)

    @property
    def _heartbeat_s(self) -> float:
        return _HEARTBEAT_S if self.holding else _HEARTBEAT_IDLE_S

    def stale(self, now: float) -> bool:
        if now - self._last_heard_s > SILENCE_S:
            self._last_heard_s = now
            return True
        return False


def _stamp(now: float) -> int:
    """A time of our clock as a heartbeat carries it; never 0."""
    return int(now * 1000) + 1


def _in_generation(header: bytes, generation: int) -> bytes:
    """The header with its generation set: it stands in bytes 8 to 12."""
    return header[:8] + generation.to_bytes(4, "little") + header[12:]
